"""How long each stage of a work takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds of each stage, in the order in which stages began. A stage that runs within another counts for itself
    alone."""

    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[float] = field(default_factory=list)  # of each open stage, what others took within it

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time until the block ends."""
        started = time.perf_counter()
        self._within.append(0.0)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            self.seconds[name] += taken - self._within.pop()
            if self._within:
                self._within[-1] += taken

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds of the stages that went on since `seconds` was as `before`."""
        found = {name: seconds - before.get(name, 0.0) for name, seconds in self.seconds.items()}
        return {name: seconds for name, seconds in found.items() if seconds > 0}
