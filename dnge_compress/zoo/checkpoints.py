"""Other people's networks: a folder of checkpoints, and a table (csv) that says something of each.

file,accuracy
run-1/last.pt,0.512
run-2/last.safetensors,0.633
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnge_compress.core.errors import CheckpointError, DataError, UnknownNameError, first_line
from dnge_compress.core.tensors import UnorderedTensors, read_tensors

FILE = "file"  # the column that names the checkpoints
PICKLED = (".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints keep a state dict


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Networks of a folder in the order of its table: names of their files, state dicts, and the table's numbers."""

    names: tuple[str, ...]
    weights: tuple[Mapping[str, Tensor], ...]
    columns: Mapping[str, Tensor]  # float64 [N]

    def __len__(self) -> int:
        return len(self.names)

    def column(self, name: str) -> Tensor:
        """The numbers `[N]` under a heading of the table. Raises UnknownNameError."""
        if name not in self.columns:
            raise UnknownNameError("column", name, self.columns)
        return self.columns[name]


def read_checkpoints(folder: Path | str, table: Path | str | None = None) -> Checkpoints:
    """The networks that `table` names (without one, `table.csv` in the folder), with its numbers.

    Its column "file" holds paths within the folder, of safetensors files or of state dicts that torch saved; all other
    columns are numbers. A state dict keeps the order of its tensors, a safetensors file doesn't. Raises DataError on a
    table that can't be read or doesn't fit, CheckpointError on a file.

        found = read_checkpoints("someones-zoo", "someones-zoo/accuracy.csv")
        inrs = gather(found.weights, found.column("label").long())
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"there is no folder '{root}'; give the one that holds the checkpoints")
    source = Path(table) if table is not None else root / "table.csv"
    numbers: dict[str, list[float]] = {}
    weights: dict[str, Mapping[str, Tensor]] = {}
    for line, row in _rows(source):
        name, place = row.pop(FILE), f"line {line} of '{source}'"
        if name in weights:
            raise DataError(f"{place} names '{name}' again; name each checkpoint once")
        if not (file := (root / name).resolve()).is_relative_to(root.resolve()):
            raise CheckpointError(f"{place} names '{name}', which lies outside '{root}'; give paths within the folder")
        if not file.is_file():
            raise CheckpointError(f"{place} names '{name}', and there is no such file in '{root}'")
        for heading, cell in row.items():
            numbers.setdefault(heading, []).append(_number(cell, f"{place} has '{cell}' under '{heading}'"))
        weights[name] = _read(file, name)
    if not weights:
        raise DataError(f"'{source}' names no checkpoint; give a line for each, under '{FILE}'")
    columns = {heading: torch.tensor(values, dtype=torch.float64) for heading, values in numbers.items()}
    return Checkpoints(names=tuple(weights), weights=tuple(weights.values()), columns=columns)


def _rows(source: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(
            f"can't read '{source}' ({first_line(e)}); give a table of comma-separated values with a column '{FILE}'"
        ) from e
    head = [heading.strip() for heading in rows[0][1]] if rows else []
    if FILE not in head:
        raise DataError(f"'{source}' has no column '{FILE}'; its first line must name the columns")
    if len(set(head)) < len(head):
        raise DataError(f"'{source}' has two columns of one name; its first line is {', '.join(head)}")
    for line, row in rows[1:]:
        if len(row) != len(head):
            raise DataError(f"line {line} of '{source}' has {len(row)} cell(s), and there are {len(head)} columns")
    return [(line, dict(zip(head, row, strict=True))) for line, row in rows[1:]]


def _number(cell: str, told: str) -> float:
    try:
        value = float(cell.replace("_", "?"))  # Python reads 1_000 as 1000, other programs don't
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{told}; every column but '{FILE}' holds numbers")
    return value


def _read(file: Path, name: str) -> Mapping[str, Tensor]:
    told = f"'{name}' is no checkpoint that can be read safely"
    if file.suffix not in (".safetensors", *PICKLED):
        raise CheckpointError(f"'{name}' is no checkpoint; give .safetensors, {', '.join(PICKLED)}")
    is_pickled = file.suffix in PICKLED
    try:
        found = torch.load(file, "cpu", weights_only=True) if is_pickled else UnorderedTensors(read_tensors(file)[0])
    except Exception as e:  # what torch raises depends on where a file is damaged; its words advise to run the file
        why = ": it is damaged, or holds more than tensors" if is_pickled else f" ({first_line(e)})"
        raise CheckpointError(f"{told}{why}; give a state dict") from e
    if not is_pickled:
        return found
    if isinstance(found, Mapping):
        weights = unwrapped(found)
        if weights and all(isinstance(value, Tensor) for value in weights.values()):
            return dict(weights)
    raise CheckpointError(f"{told}; give a state dict, tensors by name")


def unwrapped(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict that a checkpoint keeps beside other things, or what was given where it keeps none."""
    inner = [found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)]
    return inner[0] if len(inner) == 1 else found
