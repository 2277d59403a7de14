"""Progress: bars where a terminal can draw them, lines elsewhere, and neither without its empty part or cut."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from dnge_compress.core.progress_bars import bars
from dnge_compress.core.terminal import track

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **settings: str) -> list[str]:
    """What stands on stderr, line by line, while a stage is at 3 of 8."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with bars() as progress:
        progress("try without blocks", 3, 8, "a note that is rather long, as the losses of a training are")
        progress("try without blocks", 8, 8, "done")
    return [line.strip() for line in re.split(r"[\r\n]+", CONTROL.sub("", capsys.readouterr().err)) if line.strip()]


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_without_colours_still_shows_what_is_left_and_nothing_is_cut(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = drawn(capsys, monkeypatch, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm", COLUMNS=str(columns))
    assert any("try without blocks" in line and "8/8" in line and "━" in line for line in lines)
    assert all(len(line) <= columns and "…" not in line for line in lines)
    assert track(3 / 8, 16).plain == "━" * 6 + "─" * 10


@pytest.mark.parametrize("settings", [{"FORCE_COLOR": "1", "TERM": "dumb"}, {}])
def test_where_nothing_can_be_drawn_lines_are_printed(
    settings: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = drawn(capsys, monkeypatch, **settings)
    assert lines[0].startswith("dnge: try without blocks") and lines[-1] == "dnge: try without blocks 8/8  done"


def test_an_empty_bar_is_drawn_as_well() -> None:
    console = Console(no_color=True, width=40)
    with console.capture() as capture:
        console.print(track(0, 8))
    assert capture.get() == "─" * 8 + "\n"
