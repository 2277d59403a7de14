"""How plans look before anything is done: the stages of a job, and where adapters go."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from dnge_compress.lora.adapters import Adapter
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.report.condense import ranges
from dnge_compress.report.tables import ACCENT, QUIET, headed, listed

BLOCK = re.compile(r"(?<![^.])\d+(?![^.])")  # the number of a block in a module path


def placement(made: LoraPlan) -> RenderableType:
    """Where adapters go, with ranks and trainable parameters; blocks that are treated alike share a line."""
    groups: dict[tuple[str, int], list[Adapter]] = {}
    for adapter in made.adapters:
        groups.setdefault((BLOCK.sub("*", adapter.site.path, count=1), adapter.rank), []).append(adapter)
    table = headed("matrices", "blocks", "shape", "rank", "parameters", right_from=2)
    for (pattern, rank), alike in groups.items():
        numbers = [int(found[0]) for a in alike if (found := BLOCK.search(a.site.path))]
        site = alike[0].site
        table.add_row(
            Text(pattern),
            Text(ranges(numbers), QUIET),
            f"{site.inputs:,} → {site.outputs:,}",
            Text(str(rank) if rank else "–", ACCENT if rank else QUIET),
            f"{sum(a.params for a in alike):,}",
        )
    total = Text.assemble((f"{made.params:,}", f"bold {ACCENT}"), f" trainable parameters of at most {made.budget:,}")
    parts: list[RenderableType] = [total, "", table]
    if made.notes:
        parts += ["", listed(made.notes, "the plan")]
    return Padding(Group(*parts), (1, 1))
