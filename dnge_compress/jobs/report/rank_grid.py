"""The ranks of a placement by type of module and by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dnge_compress.core.wording import extent
from dnge_compress.jobs.report.values import Rank

WIDEST_GAP = 1024  # layers without an adapter are shown as gaps up to here
INDEXED = re.compile(r"(.*?)\.?\b([0-9]{1,9})\.(.+)")


@dataclass(frozen=True)
class ModuleRow:
    """The adapters on one type of module, e.g. "self_attn.q_proj".

    `cells` maps a layer to the ranks there: one, or several where a layer has many such modules, as experts are.
    """

    name: str
    ranks: tuple[Rank, ...]
    cells: dict[int, tuple[int, ...]]

    @property
    def placed(self) -> int:
        """How many of the modules have an adapter; rank 0 is none."""
        return sum(1 for r in self.ranks if r.rank)

    @property
    def coverage(self) -> str:
        """How many adapters there are, and of how many modules where that isn't all."""
        return f"{self.placed:,}" if self.placed == len(self.ranks) else f"{self.placed:,} of {len(self.ranks):,}"

    @property
    def params(self) -> int:
        return sum(r.params for r in self.ranks)

    @property
    def range(self) -> tuple[float, float]:
        return extent(r.rank for r in self.ranks)


@dataclass(frozen=True)
class RankGrid:
    """Rows in the order of their first module; modules outside all layers have rows without cells."""

    rows: tuple[ModuleRow, ...]

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """All layers from the first to the last that a row has a cell in."""
        found = sorted({layer for row in self.rows for layer in row.cells})
        if found and found[-1] - found[0] <= WIDEST_GAP:
            return tuple(range(found[0], found[-1] + 1))
        return tuple(found)

    @property
    def highest(self) -> int:
        return max((r.rank for row in self.rows for r in row.ranks), default=0)

    @property
    def placed(self) -> int:
        return sum(row.placed for row in self.rows)

    @property
    def params(self) -> int:
        return sum(row.params for row in self.rows)


def grid(ranks: Sequence[Rank]) -> RankGrid:
    """Sort adapters by type and layer: the first number in a module's path is its layer, what follows is its type.

    Where layers of several stacks are numbered, as in encoder-decoders, the stack's path is part of the type. Further
    numbers count experts or the like, and share a row.
    """
    found = [(INDEXED.fullmatch(r.module), r) for r in ranks]
    stacks = {match.group(1) for match, _ in found if match}
    rows: dict[str, list[tuple[int | None, Rank]]] = {}
    for match, rank in found:
        name, layer = rank.module, None
        if match:
            stack, number, rest = match.groups()
            layer = int(number)
            name = re.sub(r"(?<=\.)[0-9]+(?=\.)", "*", rest if len(stacks) == 1 else f"{stack}.*.{rest}")
        rows.setdefault(name, []).append((layer, rank))
    return RankGrid(tuple(_row(name, members) for name, members in rows.items()))


def _row(name: str, members: Sequence[tuple[int | None, Rank]]) -> ModuleRow:
    cells: dict[int, list[int]] = {}
    for layer, rank in members:
        if layer is not None:
            cells.setdefault(layer, []).append(rank.rank)
    return ModuleRow(name, tuple(rank for _, rank in members), {layer: tuple(cells[layer]) for layer in sorted(cells)})
