"""Finished parts of a long work, kept in a folder, so that the same work, begun again after a stop, goes on from there.

A part has a name and holds tensors or facts (JSON). It is written whole or not at all, and read back as it was made, to
the last bit; tensors are then mapped into memory, and take none until they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from safetensors import SafetensorError
from torch import Tensor

from dnge_compress.core.claims import PART, claimed
from dnge_compress.core.errors import CheckpointError, first_line
from dnge_compress.core.files import write_whole
from dnge_compress.core.folders import path_of, refuse_file
from dnge_compress.core.processes import world
from dnge_compress.core.strict_json import json_values, read_json
from dnge_compress.core.tensors import read_tensors, write_tensors

BASIS, KEY = "unfinished.json", "dnge_parts"
MOST_LETTERS = 160  # of a part's name, that its file's has
TENSORS, FACTS = ".part.safetensors", ".part.json"
F = TypeVar("F")


@dataclass(frozen=True)
class Parts:
    """The parts in a folder whose names begin with a prefix. Without a folder nothing is kept: a part is made whenever
    it is asked for."""

    folder: Path | None = None
    prefix: str = ""

    @property
    def are_kept(self) -> bool:
        """Whether parts outlive the process."""
        return self.folder is not None

    @property
    def are_there(self) -> bool:
        """Whether any is finished."""
        return self.folder is not None and any(file.name.endswith((TENSORS, FACTS)) for file in _files(self.folder))

    def within(self, prefix: str) -> Parts:
        """Parts that belong together, under names of their own."""
        return Parts(self.folder, f"{self.prefix}{prefix}.")

    def begin(self, basis: Mapping[str, Any]) -> str:
        """Go on from the parts that rest on this basis, which is JSON-able; those of another one are taken away, which
        the note returned says ("" if there were none). Raises CheckpointError for a folder with anything else."""
        if self.folder is None:
            return ""
        place, wanted = self.folder / BASIS, json_values(basis)
        whole = json.dumps({KEY: wanted}, indent=1) + "\n"
        if not place.is_file():
            if self.folder.is_dir() and any(not _is_left(file, BASIS) for file in self.folder.iterdir()):
                raise self._foreign()
            write_whole(place, whole)
            return ""
        found = read_json(place)
        if not isinstance(found, dict) or not isinstance(found.get(KEY), dict):
            raise self._foreign()
        if found[KEY] == wanted:
            return ""
        self.remove()
        write_whole(place, whole)
        changed = sorted(k for k in wanted if found[KEY].get(k) != wanted[k])
        return f"parts in '{self.folder}' were of another work ({', '.join(changed)}), so it began anew"

    def tensors(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors of a part, on the device that they were made on; made if they aren't there. Raises
        CheckpointError where they can't be written or read."""
        if self.folder is None:
            return make()
        file = self._file(name, TENSORS)
        if not file.is_file():
            made = make()
            devices = {n: str(t.device) for n, t in made.items()}
            write_tensors(file, made, {"devices": json.dumps(devices)})
        return _read(file)

    def facts(self, name: str, make: Callable[[], F]) -> F:
        """The facts of a part, of JSON's types alone; made if they aren't there."""
        if self.folder is None:
            return make()
        file = self._file(name, FACTS)
        if not file.is_file():
            write_whole(file, json.dumps(make()) + "\n")
        found: F = read_json(file)
        return found

    def let_go(self) -> None:
        """Take the tensors under this prefix away, since nobody will ask for them again; facts stay."""
        if self.folder is None or not self.prefix:
            return
        start = quote(self.prefix, safe=" ")
        for file in self.folder.glob(f"*{TENSORS}"):
            if file.name.startswith(start):
                with suppress(OSError):  # mapped, where that holds a file fast
                    file.unlink()

    def remove(self) -> None:
        """Take the parts away, whole and half written, and their folder if it holds nothing else."""
        if self.folder is None:
            return
        for file in _files(self.folder):
            is_whole = file.name.endswith((TENSORS, FACTS)) or file.name == BASIS
            if is_whole or _is_left(file, TENSORS, FACTS, BASIS):
                file.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _file(self, name: str, ending: str) -> Path:
        """Where a part lies. Names of modules may hold slashes, or be longer than those of files."""
        assert self.folder is not None
        whole = quote(f"{self.prefix}{name}", safe=" ")
        if len(whole) > MOST_LETTERS:
            whole = f"{whole[:MOST_LETTERS]}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
        return self.folder / f"{whole}{ending}"

    def _foreign(self) -> CheckpointError:
        return CheckpointError(f"'{self.folder}' holds something else than parts of a work; name another folder")


NOTHING_KEPT = Parts()


@contextmanager
def kept_parts(place: str | Path | Parts | None) -> Iterator[Parts]:
    """Parts kept in a folder, which nobody else may use meanwhile; taken away when the block ends well. Those that were
    entered already stay for who did that; for None nothing is kept. Raises CheckpointError where several processes work
    on one model."""
    if place is None or isinstance(place, Parts):
        yield place or NOTHING_KEPT
        return
    folder = path_of(place, "work").expanduser().resolve()
    if world() > 1:
        raise CheckpointError(f"finished parts are kept by one process, and these are {world()}; leave work out")
    refuse_file(folder, "parts of a work")
    with claimed(folder):
        parts = Parts(folder)
        yield parts
        parts.remove()


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_left(file: Path, *endings: str) -> bool:
    """Whether a process that was killed left it, half written (core/files.py)."""
    return re.fullmatch(rf"\..*({'|'.join(map(re.escape, endings))})\.\d+\.{PART}", file.name) is not None


def _read(file: Path) -> dict[str, Tensor]:
    try:
        tensors, header = read_tensors(file)
        return {name: tensors[name].to(device) for name, device in json.loads(header["devices"]).items()}
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as e:
        raise CheckpointError(
            f"'{file}' is truncated or corrupt ({first_line(e)}); delete it, and it is made again"
        ) from e
