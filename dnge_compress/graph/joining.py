"""Names that are joined pair by pair: which belong together in the end."""

from __future__ import annotations

from collections.abc import Iterable


class Joining:
    """Sets of names, each alone at first (union-find)."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parent = {name: name for name in names}

    def join(self, first: str, second: str) -> None:
        """Put the sets of two names together."""
        self._parent[self.root(second)] = self.root(first)

    def root(self, name: str) -> str:
        """The name that stands for a set."""
        while self._parent[name] != name:
            name = self._parent[name]
        return name
