"""Folders that are replaced in one move: written beside, then renamed, so that a reader finds the old or the new one
whole."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.wording import clean, kind

_NEW, _OLD = "dnge-new", "dnge-old"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends, and vanishes if it raises.

    Killed at any moment, it leaves the old folder, under its own name or (between the two renames) under the hidden
    one where `whole_folder` finds it and the next `atomic_folder` puts it back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    stage = target.with_name(f".{target.name}.{_NEW}-{os.getpid()}-{uuid4().hex[:8]}")
    stage.mkdir()  # not mkdtemp: its folders are closed to everyone else
    try:
        yield stage
        _flush(stage)
        _swap(stage, target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def path_of(value: object, verb: str) -> Path:
    """A path that was passed to a `verb`. Raises CheckpointError for what is none."""
    if not isinstance(value, str | Path):
        raise CheckpointError(f'a {kind(value)} is no path; {verb}("folder") reads one')
    return Path(value)


def refuse_unspeakable(*names: str | Path) -> None:
    """Raise CheckpointError for a name that holds what this process can't write as text, or can't name a file by; the
    folder that we are in may hold some as well."""
    with suppress(OSError):
        names += (Path.cwd(),)
    for name in names:
        try:
            os.fsencode(name)
            str(name).encode("utf-8")
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            way_out = "rename it" if encoding == "utf-8" else "set PYTHONUTF8=1 and start again"
            raise CheckpointError(f"'{clean(name)}' can't be spelled in {encoding}; {way_out}") from None


def whole_folder(target: Path) -> Path:
    """Where the content of `target` is: there, or set aside by a save that was killed between its two renames."""
    target = target.expanduser()
    if target.exists():
        return target
    aside = _aside(target.resolve())
    return aside if aside.is_dir() else target


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_OLD}")


def _swap(stage: Path, target: Path) -> None:
    aside = _aside(target)
    try:
        if target.exists():
            target.rename(aside)
        stage.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)  # what stays of it goes with the next save


def _recover(target: Path) -> None:
    aside = _aside(target)
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(target)
    leftover = re.compile(rf"\.{re.escape(target.name)}\.{_NEW}-(\d+)-[0-9a-f]+")
    for sibling in target.parent.iterdir():
        found = leftover.fullmatch(sibling.name)
        if found and not is_alive(int(found[1])):
            shutil.rmtree(sibling, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
