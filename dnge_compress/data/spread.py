"""Some of many rows, evenly spread, however many there turn out to be."""

from __future__ import annotations

import math
from collections.abc import Callable


class Spread:
    """Rows of about so many tokens, evenly spread over those that are added, however many those are.

    Every row is tokenised until there are twice as many tokens as wanted, then every second, and so on.
    """

    def __init__(self, tokens: int) -> None:
        self.wanted, self.every, self.seen, self.tokens = tokens, 1, 0, 0
        self.kept: list[tuple[list[int], bool]] = []

    def add(self, tokenised: Callable[[], tuple[list[int], bool]]) -> None:
        """A row, as what gives its tokens and whether they were cut."""
        if self.seen % self.every == 0:
            self.kept.append(tokenised())
            self.tokens += len(self.kept[-1][0])
            if self.tokens >= 2 * self.wanted and len(self.kept) > 1:
                self.kept, self.every = self.kept[::2], 2 * self.every
                self.tokens = sum(len(ids) for ids, _ in self.kept)
        self.seen += 1

    def rows(self) -> list[tuple[list[int], bool]]:
        """Those that are taken, in their order."""
        enough = math.ceil(len(self.kept) * min(1.0, self.wanted / max(1, self.tokens)))
        return [self.kept[i * len(self.kept) // enough] for i in range(enough)]
