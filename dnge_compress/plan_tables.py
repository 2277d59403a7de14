"""How plans look before anything is done: the stages of a job, and where adapters go."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from dnge_compress.lines import ranges
from dnge_compress.lora_plan import Adapter, LoraPlan
from dnge_compress.tables import ACCENT, QUIET, headed, listed

BLOCK = re.compile(r"(?<![^.])\d+(?![^.])")  # the number of a block in a module path


def stages(name: str, folder: str, told: Sequence[tuple[str, str]]) -> RenderableType:
    """What a job is going to do: its stages in order, each with a line about it."""
    table = headed("stage", "", right_from=9)
    table.columns[-1].no_wrap = False
    for stage, about in told:
        table.add_row(Text(stage), Text(about, QUIET))
    return Padding(Group(Text.assemble((name, "bold"), ("  →  ", QUIET), folder), "", table), (1, 1))


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
