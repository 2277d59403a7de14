"""A curve drawn with letters, for terminals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dnge_compress.report.axes import decimals, ticks

WIDTH, HEIGHT = 60, 10  # of the field, in characters
POINT, KNEE, TRACK = "●", "◆", "·"


def drawn(points: Sequence[tuple[float, float]], marked: float | None) -> tuple[str, ...]:
    """Lines of text: points (x ≥ 0, y ≥ 0) in order of x with what lies between them, the one at x = `marked` apart,
    and round numbers along both axes."""
    across, up = ticks(0, points[-1][0]), ticks(0, max(y for _, y in points))
    right, top = max(points[-1][0], across[-1]), up[-1]
    field = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]

    def put(x: float, y: float, letter: str) -> None:
        field[HEIGHT - round(y / top * HEIGHT)][round(x / right * WIDTH)] = letter

    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        steps = max(1, round((x1 - x0) / right * WIDTH))
        for i in range(steps + 1):
            put(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, TRACK)
    for x, y in points:
        put(x, y, KNEE if x == marked else POINT)
    digits = decimals(up)
    names = {HEIGHT - round(value / top * HEIGHT): f"{value:.{digits}f}" for value in up}
    margin = max(map(len, names.values()))
    lines = [f"{names.get(row, ''):>{margin}} │{''.join(letters).rstrip()}" for row, letters in enumerate(field)]
    axis, digits = [" "] * (WIDTH + 6), decimals(across)
    for value in across:
        text, place = f"{value:.{digits}f}", round(value / right * WIDTH)
        axis[place : place + len(text)] = text
    return (*lines, f"{'':>{margin}} └{'─' * (WIDTH + 1)}", f"{'':>{margin}}  {''.join(axis).rstrip()}")
