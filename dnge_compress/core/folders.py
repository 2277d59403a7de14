"""Folders that are replaced in one move: written beside, then renamed, so that a reader finds the old or the new one
whole. Each has a list of the files in it, by which those that somebody else put there are told, and never deleted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from uuid import uuid4

from dnge_compress.core.claims import NEW, claimed, sweep
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.strict_json import read_json
from dnge_compress.core.wording import clean, kind

FILES = "dnge_files.json"  # what we wrote into a folder
MOST_LISTED = 3
_OLD = "dnge-old"


@contextmanager
def atomic_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends, and vanishes if it raises.

    Raises CheckpointError if `target` holds files that no earlier call wrote, or another process writes there too; with
    `force` it may hold others of the names that the block writes.

    Killed at any moment, it leaves the old folder, under its own name or (between the two renames) under the hidden
    one where `whole_folder` finds it and the next `atomic_folder` puts it back.
    """
    with claimed(target):
        _recover(target)
        stage = beside(target)
        stage.mkdir()  # not mkdtemp: its folders are closed to everyone else
        try:
            yield stage
            written = sorted(_names(stage))
            refuse_foreign(target, written if force else ())
            (stage / FILES).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            _flush(stage)
            _swap(stage, target)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


def beside(target: Path, place: Path | None = None) -> Path:
    """A name for what is written before it takes the place of `target`, in the same folder unless another is given."""
    return (place or target.parent) / f".{target.name}.{NEW}-{os.getpid()}-{uuid4().hex[:8]}"


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


def refuse_foreign(target: Path, replaceable: Collection[str] = (), rather: str = "") -> None:
    """Raise CheckpointError for a folder with files that we didn't write, naming them; files of the `replaceable`
    names, which may be patterns, don't count. `rather` is another way out than to move them away."""
    foreign = list(islice(_foreign(target, replaceable), MOST_LISTED + 1)) if target.exists() else []
    if foreign:
        more = ", …" if len(foreign) > MOST_LISTED else ""
        raise CheckpointError(
            f"'{target}' holds {', '.join(foreign[:MOST_LISTED])}{more}, which dnge did not write"
            f"{'' if rather else ' and never deletes'}; choose another folder, or {rather or 'move it away'}"
        )


def _foreign(target: Path, replaceable: Collection[str]) -> Iterator[str]:
    ours = set(_listed(target))
    for name in _names(target):
        if name not in ours and not any(fnmatch(name, pattern) for pattern in replaceable):
            yield name


def _listed(folder: Path) -> list[str]:
    """What our list in a folder names; nothing where there is none."""
    if not (folder / FILES).is_file():
        return []
    found = read_json(folder / FILES)
    return [FILES, *map(str, found)] if isinstance(found, list) else []


def _names(folder: Path) -> Iterator[str]:
    """The paths of all files below a folder, relative to it, links to folders included."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (Path(parent) / name).relative_to(folder).as_posix()


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
    sweep(target)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
