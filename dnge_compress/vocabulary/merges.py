"""The merges of BPE: how a piece comes about, and those that are left when pieces go.

A piece that a text is cut into is merged there by the same steps as alone: no merge crosses the piece's ends, and of
those inside the first by rank is taken. So when every piece on that way stays, with its merge, the text is cut up as
before, and merges that lead elsewhere, which the text never used, can go.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any


class Merges:
    """The merges of a BPE model, as `tokenizer.json` has it."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.prefix = str(model.get("continuing_subword_prefix") or "")
        self.suffix = str(model.get("end_of_word_suffix") or "")
        self.listed = [(m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"]]
        self.rank = {(left, right): i for i, (left, right) in enumerate(self.listed)}

    def way_to(self, piece: str) -> set[str]:
        """The pieces merged on the way from a piece's characters to itself; none for one that no merges lead to."""
        parts, way = self._characters(piece), set()
        while len(parts) > 1:
            ranked = [
                (rank, i)
                for i in range(len(parts) - 1)
                if (rank := self.rank.get((parts[i], parts[i + 1]))) is not None
            ]
            if not ranked:
                return set()
            _, i = min(ranked)
            parts[i : i + 2] = [self._joined(parts[i], parts[i + 1])]
            way.add(parts[i])
        return way if parts == [piece] else set()

    def among(self, pieces: Container[str]) -> list[list[str]]:
        """The merges, in their order, whose parts and result are all among some pieces."""
        return [
            [left, right]
            for left, right in self.listed
            if left in pieces and right in pieces and self._joined(left, right) in pieces
        ]

    def _joined(self, left: str, right: str) -> str:
        return left + right[len(self.prefix) :]

    def _characters(self, piece: str) -> list[str]:
        """What a word that is this piece begins as."""
        is_inside = bool(self.prefix) and piece.startswith(self.prefix) and len(piece) > len(self.prefix)
        bare = piece[len(self.prefix) :] if is_inside else piece
        is_end = bool(self.suffix) and bare.endswith(self.suffix) and len(bare) > len(self.suffix)
        bare = bare[: -len(self.suffix)] if is_end else bare
        return [
            (self.prefix if i or is_inside else "") + char + (self.suffix if is_end and i == len(bare) - 1 else "")
            for i, char in enumerate(bare)
        ]
