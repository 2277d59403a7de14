"""Where adapters go, as a table; blocks that are treated alike share a line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.wording import ranges
from dnge_compress.lora.adapters import Adapter

BLOCK = re.compile(r"(?<![^.])\d+(?![^.])")  # the number of a block in a module path


def adapters_table(adapters: Sequence[Adapter]) -> Table:
    """Matrices, blocks, shape, rank and trainable parameters."""
    groups: dict[tuple[str, int], list[Adapter]] = {}
    for adapter in adapters:
        groups.setdefault((BLOCK.sub("*", adapter.site.path, count=1), adapter.rank), []).append(adapter)
    rows = []
    for (pattern, rank), alike in groups.items():
        numbers = [int(found[0]) for a in alike if (found := BLOCK.search(a.site.path))]
        site = alike[0].site
        rows.append(
            (
                Cell(text=pattern),
                Cell(text=ranges(numbers), style="quiet"),
                Cell(text=f"{site.inputs:,} → {site.outputs:,}"),
                Cell(text=str(rank) if rank else "–", style="accent" if rank else "quiet"),
                Cell(text=f"{sum(a.params for a in alike):,}"),
            )
        )
    columns = (
        Column(title="matrices", kind="text"),
        Column(title="blocks", kind="text"),
        Column(title="shape"),
        Column(title="rank"),
        Column(title="parameters"),
    )
    return Table(columns=columns, rows=tuple(rows))
