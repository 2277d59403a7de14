"""Whether a checkpoint can be written to a folder, told before the work begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dnge_compress.checkpoint.file_names import CHECKPOINT_FILES
from dnge_compress.core.claims import sweep
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.folders import beside, refuse_foreign, refuse_unspeakable
from dnge_compress.core.wording import count


def refuse_target(target: Path, force: bool = False, least_bytes: float = 0, base: Path | None = None) -> None:
    """Raise CheckpointError for a file, for a folder with content that dnge didn't write, for one that holds the `base`
    model's, the home or the working folder, for a mount point, and for one that can't be written or hasn't room for
    `least_bytes`. `force` lets files of the names of a checkpoint's be replaced."""
    target = target.expanduser()
    refuse_unspeakable(target)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"'{target}' is a file; name a folder")
    _refuse_dear(target, base)
    refuse_foreign(target, CHECKPOINT_FILES)
    if not force:
        refuse_foreign(target, rather="pass force=True (--force) to replace it")
    refuse_closed(target, least_bytes)


def _refuse_dear(target: Path, base: Path | None) -> None:
    whole = target.resolve()
    if base is not None and base.resolve().is_relative_to(whole):
        raise CheckpointError(f"'{target}' holds the base model itself; save somewhere else")
    for place in (Path.home(), Path.cwd()):
        if place.resolve().is_relative_to(whole):
            raise CheckpointError(f"'{target}' holds the folder you work in or your home; save into a folder below")
    if os.path.ismount(whole):
        raise CheckpointError(f"'{target}' is a mount point, which can't be replaced in one move; name a folder in it")


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
