"""Progress on stderr while a command works: bars on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.progress import Progress

QUIET_STEPS = 20  # where there is no terminal, a long stage says where it is about this often


@contextmanager
def session() -> Iterator[Progress]:
    """No chatter from transformers, and a function to report progress with."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bars = Bars(*columns, console=console, transient=True)
    tasks: dict[str, TaskID] = {}
    shown: dict[str, str] = {}

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total or None, note="")
            if not console.is_terminal:
                print(f"dnge: {stage} {note}".rstrip(), file=sys.stderr, flush=True)
        elif not console.is_terminal and note and shown.get(stage) != note:
            shown[stage] = note
            if done % max(1, total // QUIET_STEPS) == 0 or done == total:
                print(f"dnge: {stage} {done}/{total}  {note}", file=sys.stderr, flush=True)
        bars.update(tasks[stage], completed=done, total=total or None, note=note)

    with quiet(), bars:
        yield progress
