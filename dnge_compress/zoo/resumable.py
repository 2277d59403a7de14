"""Sets of networks in one safetensors file, made in parts: a part that is done is kept, so a killed command goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.files import write_whole
from dnge_compress.core.progress import Progress, silent
from dnge_compress.core.strict_json import read_json
from dnge_compress.zoo.workers import each_done


class Whole(Protocol):
    """A set that knows what it is and can be written."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What identifies it."""

    def save(self, path: Path) -> None:
        """Write one file."""


W = TypeVar("W", bound=Whole)


def build_resumably(
    about: Mapping[str, Any],
    out: Path,
    tasks: Callable[[], Mapping[str, tuple[Any, ...]]],
    make: Callable[..., str],
    *,
    load: Callable[[Path], W],
    join: Callable[[list[W]], W],
    jobs: int,
    progress: Progress = silent,
) -> W:
    """The set in `out`, or made in parts, joined and written there; then the parts are removed.

    `tasks` names the parts; `make(file, *task)` writes one into a file and returns a note on it for `progress`. Parts
    that are there already are kept. Raises CheckpointError if `out`, or the parts beside it, belong to another set.
    """
    if out.is_dir():
        raise CheckpointError(f"'{out}' is a folder; name a file")
    if out.is_file():
        found = load(out)
        if found.about != about:
            raise CheckpointError(f"'{out}' holds another set; choose another output, or delete it")
        return found
    folder = _claimed(out, about)
    named = tasks()
    files = {name: folder / f"{name}.safetensors" for name in named}
    missing = [(file, *named[name]) for name, file in files.items() if not file.is_file()]
    for done, line in enumerate(each_done(jobs, make, missing), start=1):
        progress(out.name, done, len(missing), line)
    whole = join([load(file) for file in files.values()])
    whole.save(out)
    shutil.rmtree(folder)
    return whole


def _claimed(out: Path, about: Mapping[str, Any]) -> Path:
    """The folder of the parts, beside `out`, with a record of what they belong to."""
    folder = out.with_name(f"{out.name}.parts")
    record = folder / "about.json"
    if not record.is_file() or not any(folder.glob("*.safetensors")):
        write_whole(record, json.dumps(about))
    elif read_json(record) != about:
        raise CheckpointError(f"'{folder}' holds parts of another set; delete it, or choose another output")
    return folder
