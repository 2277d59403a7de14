"""Who writes to a place: one process at a time. Others are refused at once, rather than after minutes of work, and what
processes that were killed left half written is taken away by the next one."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from dnge_compress.core.errors import CheckpointError

LOCK, NEW, PART = ".dnge-lock", "dnge-new", "part"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # file systems that have none
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def claimed(target: Path, lock: Path | None = None, *, what: str = "process") -> Iterator[Callable[[], None]]:
    """While entered, only this process writes to `target`, a file or folder, and to what lies in it. Who holds it may
    claim again what lies in it. Yields what takes the lock away, for those who can't wait for the end of the block.

    The `lock` is a file beside it unless given, and then it is asked for in any case. Folders on the way to it are
    made, and vanish again if they stay empty. Raises CheckpointError where another process or thread, or
    whatever else it is called, writes there, or nobody can.
    """
    target, held = target.expanduser().resolve(), _HELD.get()
    if lock is None and held & {target, *target.parents}:
        yield lambda: None
        return
    place = lock or target.with_name(f".{target.name}{LOCK}")
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(place)
    except OSError as e:
        reason = "its folder is a file" if isinstance(e, FileExistsError | NotADirectoryError) else e.strerror or e
        raise CheckpointError(f"'{target}' can't be written ({reason}); choose another place") from None
    if file is None:
        raise CheckpointError(f"another {what} is at work on '{target}'; wait for it, or choose another place")

    def release() -> None:
        for take_away in (place.unlink, *(folder.rmdir for folder in made)):
            with suppress(OSError):
                take_away()

    token = _HELD.set(held | {target})
    try:
        yield release
    finally:
        _HELD.reset(token)
        with file:
            release()


def sweep(target: Path) -> None:
    """Take away what processes that are no more left half written beside a file or folder."""
    left = re.compile(rf"\.{re.escape(target.name)}\.(?:{NEW}-(\d+)-[0-9a-f]+|(\d+)\.{PART})")
    for path in target.parent.iterdir():
        found = left.fullmatch(path.name)
        if found is None or is_alive(int(found[1] or found[2])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _locked(place: Path) -> IO[str] | None:
    """The open lock file, which is ours; None if it is somebody else's."""
    while True:
        file = place.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as e:
            if e.errno not in NO_LOCKS:
                file.close()
                raise
        if _is_at(file, place):
            return file
        file.close()  # who held it has just taken it away


def _is_at(file: IO[str], place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False
