"""Progress on stderr while work goes on: bars on a terminal that can draw them, a line per stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import Progress as Drawing
from rich.progress import ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from dnge_compress.core.progress import Progress
from dnge_compress.core.terminal import track
from dnge_compress.core.wording import duration

NARROW = 70  # columns of a terminal, below which bars are short and notes are left out
LONG_BAR, SHORT_BAR = 24, 12
QUIET_STEPS = 20  # where nothing can be drawn, a long stage says where it is about this often
QUIET_SECONDS = 10.0  # and at least this often


@contextmanager
def bars() -> Iterator[Progress]:
    """A function to report progress with; what it draws vanishes when the block ends."""
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal and not console.options.ascii_only:
        with _drawing(console) as progress:
            yield progress
    else:
        yield _Lines()


@contextmanager
def loading_libraries() -> Iterator[None]:
    """While heavy modules are imported: says so, and sends what they print to stderr, since stdout is for data."""
    with bars() as progress, redirect_stdout(sys.stderr):
        progress("load libraries", 0, 0)
        yield


@contextmanager
def _drawing(console: Console) -> Iterator[Progress]:
    is_narrow = console.width < NARROW
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        _Track(SHORT_BAR if is_narrow else LONG_BAR),
        _Steps(),
        _Elapsed(),
    ]
    if not is_narrow:
        columns.append(TextColumn("{task.fields[note]}", markup=False))
    drawing = Drawing(*columns, console=console, transient=True)
    tasks: dict[str, TaskID] = {}

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in tasks:
            tasks[stage] = drawing.add_task(stage, total=total or None, note="")
        drawing.update(tasks[stage], completed=done, total=total or None, note=note)

    with drawing:
        yield progress


class _Track(ProgressColumn):
    """A bar whose empty part shows without colours as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def render(self, task: Task) -> Text:
        """The bar, empty while nobody knows how much there is to do."""
        return track(task.completed / task.total if task.total else 0.0, self.width)


class _Steps(ProgressColumn):
    """Steps done of all, where there are several."""

    def render(self, task: Task) -> Text:
        """Such as 3/8."""
        return Text(f"{task.completed:.0f}/{task.total:.0f}" if task.total and task.total > 1 else "")


class _Elapsed(ProgressColumn):
    """Time since a stage began."""

    def render(self, task: Task) -> Text:
        """Such as 4.2 s."""
        return Text(duration((task.finished_time if task.finished else task.elapsed) or 0.0), "dim")


class _Lines:
    """A line when a stage begins, and now and then while it goes on."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[float, str]] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say where a stage is, if it is time to."""
        now = time.monotonic()
        if stage not in self.said:
            self._say(f"{stage} {note}", stage, note)
            return
        last, noted = self.said[stage]
        is_due = done % max(1, total // QUIET_STEPS) == 0 or done == total
        if (note and note != noted and is_due) or (done < total and now - last >= QUIET_SECONDS):
            self._say(f"{stage} {done}/{total}  {note}", stage, note)

    def _say(self, text: str, stage: str, note: str) -> None:
        self.said[stage] = time.monotonic(), note
        print(f"dnge: {text.rstrip()}", file=sys.stderr, flush=True)
