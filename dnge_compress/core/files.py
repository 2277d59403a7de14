"""Files that are written whole or not at all: a kill or a full disk leaves the old one whole, and no other.

torch, safetensors and the system each report a disk that is full or closed in their own way; here it is one error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path

from safetensors import SafetensorError

from dnge_compress.core.claims import PART, sweep
from dnge_compress.core.errors import DISK_CODES, CheckpointError, first_line

LFS_POINTER = b"version https://git-lfs."
WORDS = ("No space left", "Disk quota", "Read-only file system")
TORCH_WORDS = ("PytorchStreamWriter failed", "unexpected pos")  # of a write that was cut short, which is all it says


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a place beside `path`; what the block writes there takes the place of `path` when it ends.

    Raises CheckpointError where the disk takes no more, or the folder is closed; then nothing of it is left.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        yield part
        part.chmod(0o666 & ~umask())  # safetensors leaves files to their owner alone
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError, RuntimeError) as e:
        if not isinstance(e, OSError | SafetensorError) and not _is_of_disk(e):
            raise
        raise CheckpointError(f"can't write '{path}' ({_reason(e)}); make room, or choose another place") from e
    finally:
        with suppress(OSError):
            part.unlink()


def refuse_unreadable(file: Path) -> None:
    """Raise CheckpointError for a file that is missing, closed to us, or only a pointer to what git-lfs keeps."""
    _bytes(file, len(LFS_POINTER))


def read_text(file: Path) -> str:
    """The text of a file, which may be a pipe. Raises CheckpointError naming it."""
    try:
        return StringIO(_bytes(file).decode("utf-8"), newline=None).read()
    except UnicodeDecodeError as e:
        raise CheckpointError(f"'{file}' is no text in UTF-8 ({e.reason} at byte {e.start}); make it again") from None


def _bytes(file: Path, most: int = -1) -> bytes:
    try:
        with file.open("rb") as opened:
            found = opened.read(most)
    except FileNotFoundError:
        raise CheckpointError(f"'{file}' is missing; make or fetch it again") from None
    except OSError as e:
        way_out = "allow it (chmod u+r), or ask its owner" if e.errno in (errno.EACCES, errno.EPERM) else "try again"
        raise CheckpointError(f"'{file}' can't be read ({e.strerror or e}); {way_out}") from None
    if found.startswith(LFS_POINTER):
        raise CheckpointError(f"'{file}' is only git-lfs's pointer to the file; run `git lfs pull` in its folder")
    return found


def write_whole(path: Path, text: str) -> None:
    """Write a text. Raises CheckpointError."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def umask() -> int:
    """The process's mask for new files; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of a disk that is full or can't be written into a CheckpointError; other errors pass."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as e:
        if not _is_of_disk(e):
            raise
        raise CheckpointError(
            f"'{folder}' can't be written ({_reason(e)}); the last whole checkpoint stays: free some space and run "
            "the job again"
        ) from e


def _is_of_disk(error: Exception) -> bool:
    return getattr(error, "errno", None) in DISK_CODES or any(word in str(error) for word in (*WORDS, *TORCH_WORDS))


def _reason(error: Exception) -> str:
    is_torch = any(word in str(error) for word in TORCH_WORDS)
    return "No space left on device, or the disk failed" if is_torch else first_line(error)
