"""How a job looks before anything is done."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from dnge_compress.report.tables import QUIET, headed


def stages(name: str, folder: str, told: Sequence[tuple[str, str]]) -> RenderableType:
    """What a job is going to do: its stages in order, each with a line about it."""
    table = headed("stage", "", right_from=9)
    table.columns[-1].no_wrap = False
    for stage, about in told:
        table.add_row(Text(stage), Text(about, QUIET))
    return Padding(Group(Text.assemble((name, "bold"), ("  →  ", QUIET), folder), "", table), (1, 1))
