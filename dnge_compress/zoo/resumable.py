"""Sets of networks in one safetensors file, made in parts: a part that is done is kept, so a killed command goes on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dnge_compress.core.errors import CheckpointError, first_line
from dnge_compress.core.files import write_whole
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
) -> W:
    """The set in `out`, or made in parts by `tasks`, joined and written there; then the parts are removed.

    Raises CheckpointError if `out` holds another set.
    """
    if out.is_file():
        found = load(out)
        if found.about != about:
            raise CheckpointError(f"'{out}' holds another set; choose another output, or delete it")
        return found
    whole = join([load(file) for file in _make_parts(about, out, tasks(), make, jobs=jobs)])
    whole.save(out)
    shutil.rmtree(_folder(out))
    return whole


def _make_parts(
    about: Mapping[str, Any], out: Path, tasks: Mapping[str, tuple[Any, ...]], make: Callable[..., str], *, jobs: int
) -> list[Path]:
    """One file beside `out` for each named task, in their order; those that are there already are kept.

    `make(file, *task)` writes a file and returns what to print of it. Raises CheckpointError if the parts there
    belong to a set that is not `about`, or if nothing can be written there.
    """
    folder = _folder(out)
    record = folder / "about.json"
    if out.is_dir():
        raise CheckpointError(f"'{out}' is a folder; name a file")
    try:
        is_started = record.is_file() and any(folder.glob("*.safetensors"))
        if is_started and json.loads(record.read_text(encoding="utf-8")) != about:
            raise CheckpointError(f"{folder} is the half of another set; delete it, or choose another output")
        folder.mkdir(parents=True, exist_ok=True)
        if not is_started:
            write_whole(record, json.dumps(about))
    except (OSError, json.JSONDecodeError) as e:
        raise CheckpointError(f"can't write the parts of '{out}' ({first_line(e)}); choose another place") from e
    files = {name: folder / f"{name}.safetensors" for name in tasks}
    missing = [(file, *tasks[name]) for name, file in files.items() if not file.is_file()]
    for done, line in enumerate(each_done(jobs, make, missing), start=1):
        print(f"[{done}/{len(missing)}] {out.name}: {line}", file=sys.stderr, flush=True)
    return list(files.values())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write one file, whole or not at all. Raises CheckpointError."""
    half = path.with_name(f".{path.name}.half")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in tensors.items()}, half, dict(header))
        half.chmod(0o644)  # safetensors leaves it to its owner alone
        half.replace(path)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"can't write '{path}' ({first_line(e)}); choose another place") from e


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file. Raises OSError or SafetensorError."""
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118 (no mapping)


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")
