"""Whether a checkpoint can be written to a folder, told before the work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from dnge_compress.core.claims import sweep
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.folders import beside, refuse_foreign, refuse_unspeakable
from dnge_compress.core.wording import count

# What a checkpoint's files are called, ours and other people's; in a folder that is forced they may be replaced.
CHECKPOINT_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "README.md"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*.json", "vocab*.txt", "merges.txt"),
    *("*.model", "*.tiktoken", "chat_template*", "additional_chat_templates/*.jinja", "*processor_config.json"),
    *("feature_extractor*.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("[0-9]*_*/*", "LICENSE*", "NOTICE*", "dnge_*.json"),
)


def refuse_target(target: Path, force: bool = False, least_bytes: float = 0) -> None:
    """Raise CheckpointError for a file, for a folder with content that dnge didn't write, and for one that can't be
    written or hasn't room for `least_bytes`. `force` lets files of the names of a checkpoint's be replaced."""
    target = target.expanduser()
    refuse_unspeakable(target)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"'{target}' is a file; name a folder")
    refuse_foreign(target, CHECKPOINT_FILES)
    if not force:
        refuse_foreign(target, rather="pass force=True (--force) to replace it")
    refuse_closed(target, least_bytes)


def refuse_closed(target: Path, least_bytes: float = 0) -> None:
    """Raise CheckpointError where nothing can be written beside a file or folder, or there is no room for it; tried by
    making an empty folder there, which is taken away again."""
    place = next(parent for parent in target.resolve().parents if parent.exists())
    trial = beside(target, place)
    try:
        sweep(place / target.name)
        trial.mkdir()
        trial.rmdir()
    except OSError as e:
        raise CheckpointError(f"'{target}' can't be written ({e.strerror or e}); choose another place") from None
    free = shutil.disk_usage(place).free
    if free < least_bytes:
        raise CheckpointError(
            f"'{target}' can't be written: at least {count(least_bytes, 'B')} are needed there, and {count(free, 'B')} "
            "are free; make room, or choose another place"
        )
