"""The ranks of a placement by type of module and by layer, and the section that shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dnge_compress.core.document import Cell, Column, Paragraph, Section, Table
from dnge_compress.core.errors import PlanError
from dnge_compress.core.wording import count, extent, several, span
from dnge_compress.plans.space_rows import MAX_LINES
from dnge_compress.report.axes import layers_between
from dnge_compress.report.heat import Shade, heat, layer_axis

INDEXED = re.compile(r"(.*?)\.?\b([0-9]{1,9})\.(.+)")


@dataclass(frozen=True)
class Rank:
    """One adapter: the module it is on, its rank and its trainable parameters. Rank 0 is no adapter."""

    module: str
    rank: int
    params: int

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise PlanError(f"rank of module '{self.module}' is {self.rank}; it should be at least 0")


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
        """Trainable parameters."""
        return sum(r.params for r in self.ranks)

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest rank."""
        return extent(r.rank for r in self.ranks)


@dataclass(frozen=True)
class RankGrid:
    """Rows in the order of their first module; modules outside all layers have rows without cells."""

    rows: tuple[ModuleRow, ...]

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """All layers from the first to the last that a row has a cell in."""
        return layers_between(layer for row in self.rows for layer in row.cells)

    @property
    def highest(self) -> int:
        """The largest rank."""
        return max((r.rank for row in self.rows for r in row.ranks), default=0)

    @property
    def placed(self) -> int:
        """How many adapters there are."""
        return sum(row.placed for row in self.rows)

    @property
    def params(self) -> int:
        """Trainable parameters of all."""
        return sum(row.params for row in self.rows)


def ranks_section(found: Sequence[Rank]) -> Section | None:
    """One line per type of module; drawings show the ranks from the first layer to the last."""
    if not found:
        return None
    placed = grid(found)
    total = f"{several(placed.placed, 'adapter')}, {count(placed.params)} trainable parameters"
    lead = Paragraph(f"{total}, rank {placed.highest} at most.")
    ordered = sorted(placed.rows, key=lambda row: not row.cells)  # modules outside all layers come last
    columns = [
        Column(title="type of module", kind="text", is_long=True),
        Column(title="adapters"),
        Column(title="rank"),
        Column(title="parameters"),
    ]
    if placed.layers:
        columns.append(Column(title="rank by layer", kind="strip"))
    rows = [_rank_row(row, placed) for row in ordered]
    table = Table(
        columns=tuple(columns),
        rows=tuple(rows),
        look="heat ranks",
        forms=("markdown", "page"),
        axis=layer_axis(placed.layers) if placed.layers else "",
    )
    more = [
        Cell(text=f"and {several(len(rows) - MAX_LINES, 'more type')}", style="quiet"),
        *[Cell()] * (len(columns) - 1),
    ]
    few = rows[:MAX_LINES] + ([tuple(more)] if len(rows) > MAX_LINES else [])
    short = Table(columns=tuple(columns), rows=tuple(few), forms=("terminal",))
    if not placed.layers:
        return Section("Ranks", (lead, short, table))
    caption = "A cell is a layer: the stronger, the higher the rank. Where it is empty, there is no adapter."
    return Section("Ranks", (lead, short, table, Paragraph(caption, "quiet", ("page",)), _rank_matrix(placed)))


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


def _rank_row(row: ModuleRow, placed: RankGrid) -> tuple[Cell, ...]:
    cells = (Cell(text=row.name), Cell(text=row.coverage), Cell(text=span(row.range)), Cell(text=count(row.params)))
    if not placed.layers:
        return cells
    if not row.cells:
        return (*cells, Cell())
    description = f"{several(row.placed, 'adapter')}, rank {span(row.range)}, layer by layer."
    means = (sum(found) / len(found) if (found := row.cells.get(x, ())) else 0.0 for x in placed.layers)
    strip = tuple(mean / max(1, placed.highest) for mean in means)
    shades = {layer: _shade(f"{row.name}, layer {layer}", found, placed.highest) for layer, found in row.cells.items()}
    return (*cells, Cell(strip=strip, drawing=heat(f"Ranks on {row.name}", description, placed.layers, shades)))


def _shade(where: str, ranks: Sequence[int], highest: int) -> Shade:
    """The stronger, the higher the mean rank; an outline is none."""
    mean, text = sum(ranks) / len(ranks), span(extent(ranks))
    label = f"{where}: {f'rank {text}' if mean else 'no adapter'}"
    return Shade(mean / highest if mean else None, text, label)


def _rank_matrix(placed: RankGrid) -> Table:
    kinds = [row for row in placed.rows if row.cells]
    rows = tuple(
        (Cell(text=str(layer)), *(Cell(text=", ".join(map(str, row.cells.get(layer, ())))) for row in kinds))
        for layer in placed.layers
    )
    columns = (Column(title="layer", kind="text"), *(Column(title=row.name) for row in kinds))
    return Table(columns=columns, rows=rows, title="All ranks by layer", forms=("page",))
