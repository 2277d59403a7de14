"""The files beside a base's weights that its users need: tokenizer, processor, sentence-transformers modules."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from dnge_compress.checkpoint.file_names import MODULE_PATTERNS, MODULES, PATTERNS, TOKENIZER
from dnge_compress.checkpoint.model_files import HUB_EXTRAS, HUB_ID
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.strict_json import read_json

CACHED = "models--"  # how the hub's cache calls the folder of a model
CARD_KEYS = ("license", "license_name", "license_link", "language", "pipeline_tag")


@dataclass(frozen=True)
class Base:
    """Where a model came from: its hub id ("" if none is known), local folder (None if none is at hand), card."""

    hub_id: str
    folder: Path | None
    metadata: dict[str, Any]


def origin_of(model: nn.Module) -> Base:
    """The base that a model was loaded from, by the name transformers keeps on it."""
    config = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", "") or "")
    if not name:
        return Base("", None, {})
    folder = Path(name).expanduser()
    if folder.is_dir():
        is_same = (folder / "config.json").is_file() and (
            read_json(folder / "config.json").get("model_type") == getattr(config, "model_type", None)
        )
        found = folder.resolve() if is_same else None
        return Base(_hub_id_of(folder), found, _metadata(found))
    if not HUB_ID.fullmatch(name):
        return Base("", None, {})
    try:
        revision = getattr(config, "_commit_hash", None)
        patterns = [*PATTERNS, *(f"*/{p}" for p in MODULE_PATTERNS), "README.md", "config.json"]
        ignored = [*HUB_EXTRAS, "*/*.bin"]
        found = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        found = None  # the model card says that the tokenizer is missing
    return Base(name, found, _metadata(found))


def copy_aux_files(base: Base, target: Path, tokenizer: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Copy what `PATTERNS` names, and the folders that modules.json lists. Returns (copied, left out) as paths.

    Where the files of another `tokenizer` are given, by name, they take the place of all of the base's.

    Weights of the base, pickles, code and the old model card never come along. A sentence-transformers module that
    has its weights only as a pickle is left out, and named.
    """
    for name, text in tokenizer.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    if base.folder is None:
        return [], []
    left_out: list[str] = []
    for module in _module_folders(base.folder):
        if not any(module.glob("*.safetensors")):
            left_out += [str(f.relative_to(base.folder)) for f in module.glob("*.bin")]
    names = aux_files(base.folder, with_tokenizer=not tokenizer)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.folder / name, target / name)
    return names, sorted(left_out)


def aux_files(folder: Path, with_tokenizer: bool = True) -> list[str]:
    """The names of what `copy_aux_files` copies from a folder.

    Raises CheckpointError for modules that lie elsewhere, and for links that lead out of the folder (within the hub's
    cache they may): what they lead to may be nobody's business.
    """
    patterns = [pattern for pattern in PATTERNS if with_tokenizer or pattern not in TOKENIZER]
    files = {f for pattern in patterns for f in folder.glob(pattern) if f.is_file()}
    for module in _module_folders(folder):
        files |= {f for pattern in MODULE_PATTERNS for f in module.glob(pattern) if f.is_file()}
    home = _home(folder)
    for file in sorted(files):
        if not file.resolve().is_relative_to(home):
            raise CheckpointError(f"'{file}' is a link that leads out of its folder; put the file itself there")
    return sorted(str(f.relative_to(folder)) for f in files)


def _module_folders(folder: Path) -> list[Path]:
    listed = read_json(folder / MODULES) if (folder / MODULES).is_file() else []
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"'{folder / MODULES}' holds no list of modules; fetch it again")
    found = []
    for module in listed:
        path = folder / str(module.get("path", ""))
        if ".." in path.parts or not path.is_relative_to(folder):
            raise CheckpointError(f"'{folder / MODULES}' points outside of its folder: '{module.get('path')}'")
        if path != folder and path.is_dir():
            found.append(path)
    return found


def _home(folder: Path) -> Path:
    """Where links from a model's folder may lead: into the folder, or anywhere among one model's files in the cache."""
    whole = folder.resolve()
    return next((place for place in whole.parents if place.name.startswith(CACHED)), whole)


def _hub_id_of(folder: Path) -> str:
    """The hub id of a snapshot in the cache (…/models--owner--name/snapshots/commit)."""
    for part in folder.resolve().parts:
        if part.startswith(CACHED):
            return part.removeprefix(CACHED).replace("--", "/")
    return ""


def _metadata(folder: Path | None) -> dict[str, Any]:
    """The front matter of the base's model card that its compressed copy inherits."""
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return {}
    _, mark, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        raw = yaml.safe_load(rest.partition("\n---")[0]) if mark else None
    except (yaml.YAMLError, ValueError, RecursionError):  # dates that there are not, a thousand brackets
        return {}
    return {k: raw[k] for k in CARD_KEYS if k in raw} if isinstance(raw, dict) else {}
