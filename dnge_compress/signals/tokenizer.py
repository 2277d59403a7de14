"""The tokenizer beside a model: there, missing, or broken, and then why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dnge_compress.core.deadline import deadline
from dnge_compress.core.errors import CheckpointError, DataError, first_line
from dnge_compress.core.strict_json import read_json

FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tik*")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # without any vocabulary
TEMPLATE_SECONDS = 10.0  # that a chat template may take for one conversation


@lru_cache(maxsize=8)
def tokenizer_of(path: str) -> Any | None:
    """The tokenizer that lies beside a model; None for a model made from a config, or a folder with weights alone, or
    with a tokenizer that can't be read (`tokenizer_fault` says why)."""
    return _read(path)[0]


def needed_tokenizer(path: str, purpose: str) -> Any:
    """The tokenizer beside a model, a new one. Raises DataError with the reason why there is none for the `purpose`."""
    found, reason = _read(path, is_local=False)
    if found is None:
        raise DataError(f"there is no tokenizer {purpose}: {reason}")
    return found


def tokenizer_fault(path: str) -> str:
    """Why a tokenizer that lies beside a model can't be read; "" if it can, or there is none."""
    if not Path(path).is_dir() or not _files(Path(path)) or tokenizer_of(path) is not None:
        return ""
    return _read(path)[1]


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """A conversation as the tokenizer's chat template writes it. Raises DataError for a template that doesn't end, and
    what templates raise."""
    over = DataError(f"the chat template did not end within {TEMPLATE_SECONDS:g} s; correct it")
    with deadline(TEMPLATE_SECONDS, over):
        return tokenizer.apply_chat_template(list(messages), **options)


def _read(path: str, is_local: bool = True) -> tuple[Any | None, str]:
    folder = Path(path).expanduser()
    if not path:
        return None, "the model was made from a config, not loaded from a folder that has one"
    if folder.is_dir() and not _files(folder):
        return None, f"'{folder}' holds none (no tokenizer.json); copy that of the base model into it"
    if not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~")) or len(folder.parts) > 2):
        return None, f"the model's folder '{folder}' isn't there; put it back, or correct the name"
    try:
        found = AutoTokenizer.from_pretrained(path, local_files_only=is_local)
    except Exception as e:  # transformers and tokenizers raise a dozen kinds, a bare Exception among them
        return None, _broken(folder) or f"that of '{path}' can't be read ({first_line(e)})"
    # transformers makes an empty one of settings alone; only those that know characters or bytes need no more.
    if folder.is_dir() and found.vocab_files_names and all(file.name in SETTINGS for file in _files(folder)):
        return None, f"'{folder}' holds its settings alone (no tokenizer.json); copy that of the base model into it"
    return found, ""


def _files(folder: Path) -> list[Path]:
    return sorted(file for pattern in FILES for file in folder.glob(pattern) if file.is_file())


def _broken(folder: Path) -> str:
    """The file that is to blame, and why."""
    for file in _files(folder) if folder.is_dir() else ():
        if file.suffix == ".json":
            try:
                read_json(file)
            except CheckpointError as e:
                return str(e)
    return ""
