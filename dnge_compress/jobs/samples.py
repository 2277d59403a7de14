"""How the models of a job go on after the same beginnings: beside the numbers, for the reader to see."""

from __future__ import annotations

from typing import Any

import numpy as np

from dnge_compress.data.rows import Examples
from dnge_compress.tasks.writing import continuation

ROWS = 2
BEGINNING, CONTINUATION = 24, 40  # tokens


def continuation_of(positions: int | None) -> int:
    """How many tokens are written, for a model with so many positions (None: without a limit)."""
    return CONTINUATION if positions is None else min(CONTINUATION, max(1, positions // 2))


def beginnings_of(rows: Examples, positions: int | None) -> list[list[int]]:
    """The first tokens of a few rows spread over all; where a part of a row is learned, what stands before it: as much
    of its end as leaves room for the continuation."""
    found = []
    room = 0 if positions is None else positions - continuation_of(positions)
    for index in dict.fromkeys(np.linspace(0, len(rows) - 1, ROWS + 1).astype(int)[:ROWS].tolist()):
        ids, labels = (rows[index][name] for name in ("input_ids", "labels"))
        learned = int(np.argmax(labels >= 0))  # 1 where all of it is
        found.append(ids[: learned if learned > 1 else min(BEGINNING, max(1, len(ids) // 2))][-room:].tolist())
    return found


def continued(model: Any, beginning: list[int], tokenizer: Any, tokens: int) -> str:
    """What the model goes on with for so many tokens, the likeliest each time."""
    return str(tokenizer.decode(continuation(model, beginning, tokenizer, tokens), skip_special_tokens=True))
