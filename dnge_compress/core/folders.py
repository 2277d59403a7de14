"""Folders that are replaced in one move: written beside, then renamed, so that a reader finds the old or the new one
whole. Each has a list of the files in it and their content, by which what somebody else put there or changed is told,
and never deleted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePosixPath
from uuid import uuid4

from dnge_compress.core.claims import NEW, claimed, sweep
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.strict_json import read_json
from dnge_compress.core.wording import clean, kind

FILES = "dnge_files.json"  # what we wrote into a folder, and the SHA-256 of each
MOST_LISTED = 3
PIECE = 1 << 20  # bytes that are read at a time
_OLD = "dnge-old"


@contextmanager
def atomic_folder(target: Path, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends, and vanishes if it raises.

    Raises CheckpointError if `target` holds files that no earlier call wrote, or that changed since, or if another
    process writes there too; files of the `replaceable` names, which may be patterns, don't count.

    Killed at any moment, it leaves the old folder, under its own name or (between the two renames) under the hidden
    one where `whole_folder` finds it and the next `atomic_folder` puts it back.
    """
    with claimed(target):
        _recover(target)
        stage = beside(target)
        stage.mkdir()  # not mkdtemp: its folders are closed to everyone else
        try:
            yield stage
            _list(stage)
            _flush(stage)
            _swap(stage, target, replaceable)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


def beside(target: Path, place: Path | None = None) -> Path:
    """A name for what is written before it takes the place of `target`, in the same folder unless another is given."""
    return (place or target.parent) / f".{target.name}.{NEW}-{os.getpid()}-{uuid4().hex[:8]}"


def refuse_file(place: Path, kept: str) -> None:
    """Raises CheckpointError if there is a file where a folder should hold what is `kept`."""
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"'{place}' is a file, and {kept} are kept in a folder; name another place")


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
    """Raise CheckpointError for a folder with files or empty folders that aren't as we wrote them, naming them; those
    of the `replaceable` names, which may be patterns, don't count. `rather` is another way out than to move them
    away."""
    listed = _listed(target) if target.exists() else {}
    foreign = list(islice(_foreign(target, listed, replaceable), MOST_LISTED + 1))
    if foreign:
        more = ", …" if len(foreign) > MOST_LISTED else ""
        what = "which changed since dnge wrote it" if listed.keys() >= set(foreign) else "which dnge did not write"
        raise CheckpointError(
            f"'{target}' holds {', '.join(foreign[:MOST_LISTED])}{more}, {what}"
            f"{'' if rather else ' and never deletes'}; choose another folder, or {rather or 'move it away'}"
        )


def _foreign(target: Path, listed: Mapping[str, str], replaceable: Collection[str]) -> Iterator[str]:
    for name in _names(target):
        if any(_is_named(name, pattern) for pattern in replaceable) or (name == FILES and listed):
            continue
        if name not in listed or listed[name] != _content(target / name):
            yield name


def _is_named(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern, part by part: no star stands for a slash."""
    parts, wanted = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    return len(parts) == len(wanted) and all(map(fnmatch, parts, wanted)) and not name.endswith("/")


def _list(folder: Path) -> None:
    """Write down what is in a folder."""
    found = {name: _content(folder / name) for name in sorted(_names(folder)) if name != FILES}
    (folder / FILES).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _listed(folder: Path) -> dict[str, str]:
    """What our list in a folder names, with its content; nothing where there is none."""
    found = read_json(folder / FILES) if (folder / FILES).is_file() else {}
    return {str(name): str(content) for name, content in found.items()} if isinstance(found, dict) else {}


def _content(path: Path) -> str:
    """The SHA-256 of a file; "" for what is none, or can't be read. Times would do as well until a folder is copied."""
    if path.is_symlink() or not path.is_file():
        return ""
    digest = hashlib.sha256()
    with suppress(OSError), path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
        return digest.hexdigest()
    return ""


def _names(folder: Path) -> Iterator[str]:
    """The paths of all files below a folder, relative to it, links to folders included; empty folders end in "/"."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (Path(parent) / name).relative_to(folder).as_posix()
        if not files and not folders and Path(parent) != folder:
            yield f"{Path(parent).relative_to(folder).as_posix()}/"


def _times(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of what is in a folder, by which a change within seconds is told."""
    found = {name: (folder / name).lstat() for name in _names(folder)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_OLD}")


def _swap(stage: Path, target: Path, replaceable: Collection[str]) -> None:
    aside, seen = _aside(target), _times(target)
    refuse_foreign(target, replaceable)
    try:
        if target.exists():
            target.rename(aside)
        if _times(aside) != seen:  # looked at again where nobody puts anything
            raise CheckpointError(f"what '{target}' holds changed while it was being replaced; it stays as it is")
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
