"""Where an encoder's weights lie: the shipped file, a file, a folder, or a repository on the hub.

A file carries config and provenance in its safetensors header; a folder has them in `config.json` and in the header
of `model.safetensors`, beside a model card. The hub's own layout is that folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from torch import Tensor

from dnge_compress.core.errors import CheckpointError, first_line
from dnge_compress.core.files import refuse_unreadable
from dnge_compress.core.strict_json import read_json
from dnge_compress.core.tensors import read_tensors, write_tensors

BASE = Path(__file__).with_name("base.safetensors")
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_ERRORS = (OSError, HFValidationError, HTTPError)  # the last is the client's own, which the hub lets through
WAY_OUT = 'use "base" or make some with `dnge pretrain`'


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What lies on disk: tensors by name, the config's fields, how the weights were made, and their card."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)
    provenance: Mapping[str, Any]
    card: str = ""


@dataclass(frozen=True)
class Origin:
    """How weights were made, their model card, and the digest of the weights that both tell about."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    digest: str = ""


def fetch(source: str | Path, revision: str | None = None, token: str | bool | None = None) -> Stored:
    """Read "base", a file, a folder, or a hub id (owner/name, downloaded if need be). Raises CheckpointError."""
    path = BASE if source == "base" else Path(source).expanduser()
    if not path.exists():
        if path.suffix == BASE.suffix or not HUB_ID.fullmatch(str(source)):
            raise CheckpointError(f"no encoder weights at '{source}', and it is no hub id (owner/name); {WAY_OUT}")
        path = _downloaded(str(source), revision, token)
    if path.is_file():
        return _read_file(path, path.with_name(CARD) if path == BASE else None)
    return _read_folder(path)


def write(file: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """One safetensors file with config and provenance in its header. Raises CheckpointError."""
    header = {"config": json.dumps(config), "provenance": json.dumps(provenance)}
    write_tensors(file, tensors, header)


def refuse_encoder_target(path: Path) -> None:
    """Raise CheckpointError for a file that isn't called as weights are, and for a folder with a model that is no
    encoder: saving there would destroy it."""
    if path.suffix == BASE.suffix:
        return
    if path.is_file():
        raise CheckpointError(f"'{path}' is a file; give a folder, or a name that ends in {BASE.suffix}")
    if not (path / CONFIG).is_file():
        return
    known = read_json(path / CONFIG)
    if not isinstance(known, dict) or not {"hidden", "features", "limit"} <= known.keys():
        raise CheckpointError(f"'{path}' holds another model; choose another folder for the encoder")


def card(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The model card of weights that come without one: only what is known about them."""
    made = f"```json\n{json.dumps(provenance, indent=1)}\n```" if provenance else "Nothing is recorded."
    return (
        "# Weights of a dynamic graph encoder\n\n"
        "They correct the OBS removal costs by which dnge_compress scores units for structured pruning.\n\n"
        "```python\nfrom dnge_compress.encoder import DNGEncoder\n\n"
        'encoder = DNGEncoder.from_pretrained("PATH")\n```\n\n'
        f"## Config\n\n```json\n{json.dumps(config, indent=1)}\n```\n\n## How they were made\n\n{made}\n"
    )


def _downloaded(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except HUB_ERRORS as e:
        raise CheckpointError(
            f"no encoder weights at '{repo_id}', and the hub gave none ({first_line(e)}); {WAY_OUT}"
        ) from e


def _read_folder(folder: Path) -> Stored:
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise CheckpointError(f"'{folder}' has no {name}, so it holds no encoder; {WAY_OUT}")
    stored = _read_file(folder / WEIGHTS, folder / CARD, needs_config=False)
    config = read_json(folder / CONFIG)
    if stored.config and stored.config != config:
        raise CheckpointError(f"'{folder / CONFIG}' isn't the config in the header of {WEIGHTS}; fetch both again")
    return Stored(path=folder, config=config, tensors=stored.tensors, provenance=stored.provenance, card=stored.card)


def _read_file(path: Path, card_file: Path | None, needs_config: bool = True) -> Stored:
    refuse_unreadable(path)
    try:
        tensors, header = read_tensors(path)
        config, provenance = (json.loads(header.get(key, "{}")) for key in ("config", "provenance"))
    except (SafetensorError, OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"'{path}' is truncated or corrupt ({first_line(e)}); fetch it again or {WAY_OUT}") from e
    if not isinstance(config, dict) or not isinstance(provenance, dict):
        raise CheckpointError(f"'{path}' holds no encoder of this version; update dnge_compress, or {WAY_OUT}")
    if needs_config and not config:
        raise CheckpointError(f"'{path}' has no encoder's config in its header, so it holds no encoder; {WAY_OUT}")
    bad = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
    if bad:
        raise CheckpointError(f"'{bad[0]}' in '{path}' holds NaN or infinite values; fetch it again or {WAY_OUT}")
    text = card_file.read_text(encoding="utf-8") if card_file is not None and card_file.is_file() else ""
    return Stored(path=path, config=config, tensors=tensors, provenance=provenance, card=text)
