"""Whether the files that rows were read from are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dnge_compress.data.row_files import is_on_hub, wanted
from dnge_compress.recipes.data_schema import Dataset


def marks_of(sources: Iterable[Dataset], folder: Path) -> dict[str, dict[str, Any]]:
    """Path → size, time and hash of every local file that the sources read."""
    return {str(file): {**_stamp(file), "sha256": _hash(file)} for file in _files(sources, folder)}


def changed(sources: Iterable[Dataset], folder: Path, before: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first file whose content isn't what it was when `before` was taken, that is new, or that is gone; or None.

    Only files whose size or time is another are read again.
    """
    now = _files(sources, folder)
    gone_or_new = {*map(str, now)} ^ {*before}
    if gone_or_new:
        return min(gone_or_new)
    for file in now:
        old = before[str(file)]
        stamp = _stamp(file)
        if stamp["bytes"] != old["bytes"] or (stamp["time_ns"] != old["time_ns"] and _hash(file) != old["sha256"]):
            return str(file)
    return None


def _files(sources: Iterable[Dataset], folder: Path) -> list[Path]:
    local = [s for s in sources if s.type != "sampled" and not is_on_hub(s, folder)]
    return [file for source in local for files in wanted(source, folder).values() for file in files]


def _stamp(file: Path) -> dict[str, int]:
    found = file.stat()
    return {"bytes": found.st_size, "time_ns": found.st_mtime_ns}


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
