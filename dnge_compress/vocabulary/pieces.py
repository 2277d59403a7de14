"""The pieces of a tokenizer as its `tokenizer.json` lists them: which must stay, which need others, and the same file
with fewer of them.

Why texts made of kept pieces are cut up as before: a merge of BPE or a way through Unigram that was the best of all is
the best of fewer, as their order stays, and WordPiece takes the longest piece that there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.vocabulary.merges import Merges

KINDS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
SPECIAL, CHARACTERS, UNSPELLED = "special and added", "single characters and bytes", "of other characters"
UNLIKELY = "the least likely"  # Unigram prices unknown characters by it


class Pieces:
    """The pieces in one `tokenizer.json`, given as `raw`. Raises UnsupportedModelError for a kind that can't shrink."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw, self.model = raw, raw["model"]
        self.kind = str(self.model.get("type"))
        if self.kind not in KINDS:
            raise UnsupportedModelError(
                f"a tokenizer of the kind {self.kind} has no pieces to spell what goes; {', '.join(KINDS)} can be cut"
            )
        listed = self.model["vocab"]
        own = {piece: i for i, (piece, _) in enumerate(listed)} if self.kind == "Unigram" else dict(listed)
        self.own: dict[str, int] = own
        self.added: dict[str, int] = {token["content"]: token["id"] for token in raw.get("added_tokens") or ()}
        self.ids: dict[str, int] = own | self.added

    @cached_property
    def must_stay(self) -> dict[int, str]:
        """Pieces without which some text couldn't be written any more, each with the reason."""
        found = {i: UNSPELLED for piece, i in self.own.items() if not self._is_spelled(piece)}
        found |= {i: CHARACTERS for piece, i in self.own.items() if self._is_single(piece) or BYTE.fullmatch(piece)}
        if self.kind == "Unigram":
            scores = [score for _, score in self.model["vocab"]]
            found.setdefault(scores.index(min(scores)), UNLIKELY)
        return found | dict.fromkeys(self._special(), SPECIAL)

    def parts(self, piece: str) -> set[int]:
        """The ids of the pieces that BPE merges on the way to one; others need none."""
        return {self.own[part] for part in self._merges.way_to(piece)} if self._merges else set()

    def without_others(self, keep: tuple[int, ...]) -> dict[str, Any]:
        """The tokenizer with the tokens `keep` alone, numbered in their order."""
        new = {old: i for i, old in enumerate(keep)}
        model = dict(self.model)
        if self.kind == "Unigram":
            model["vocab"] = [entry for i, entry in enumerate(self.model["vocab"]) if i in new]
            model["unk_id"] = None if self.model.get("unk_id") is None else new[self.model["unk_id"]]
        else:
            model["vocab"] = {piece: new[i] for piece, i in self.own.items() if i in new}
        if self._merges:
            model["merges"] = self._merges.among(model["vocab"])
        raw = dict(self.raw) | {"model": model}
        raw["added_tokens"] = [token | {"id": new[token["id"]]} for token in self.raw.get("added_tokens") or ()]
        if self.raw.get("post_processor"):
            raw["post_processor"] = _renumbered(self.raw["post_processor"], new)
        if self.raw.get("padding"):
            raw["padding"] = self.raw["padding"] | {"pad_id": new[self.raw["padding"]["pad_id"]]}
        return raw

    @cached_property
    def _merges(self) -> Merges | None:
        return Merges(self.model) if self.kind == "BPE" else None

    def _special(self) -> Iterator[int]:
        yield from self.added.values()
        unknown = self.model.get("unk_token")
        if unknown in self.own:
            yield self.own[unknown]
        if self.model.get("unk_id") is not None:
            yield self.model["unk_id"]
        yield from _ids_in(self.raw.get("post_processor"))
        if self.raw.get("padding"):
            yield self.raw["padding"]["pad_id"]

    def _bare(self, piece: str) -> str:
        """A piece without the signs for the middle and the end of a word."""
        bare = piece.removeprefix(self.model.get("continuing_subword_prefix") or "")
        return bare.removesuffix(self.model.get("end_of_word_suffix") or "") or piece

    def _is_single(self, piece: str) -> bool:
        return len(self._bare(piece)) == 1

    def _is_spelled(self, piece: str) -> bool:
        """Whether the piece's characters are pieces of their own, so that it isn't the only way to write them."""
        if self.kind == "BPE":  # its words begin as single characters
            return True
        prefix = self.model.get("continuing_subword_prefix") or ""
        first = prefix if prefix and piece.startswith(prefix) else ""
        rest = self._bare(piece) if prefix else piece
        return all(((prefix if i else first) + char) in self.own for i, char in enumerate(rest))


def _ids_in(processor: Any) -> Iterator[int]:
    """The ids of the tokens that a post-processor sets around texts."""
    if isinstance(processor, list):
        for inner in processor:
            yield from _ids_in(inner)
    elif isinstance(processor, Mapping):
        for name in ("cls", "sep"):
            if isinstance(processor.get(name), list):
                yield processor[name][1]
        for token in (processor.get("special_tokens") or {}).values():
            yield from token["ids"]
        yield from _ids_in(processor.get("processors"))


def _renumbered(processor: Any, new: Mapping[int, int]) -> Any:
    if isinstance(processor, list):
        return [_renumbered(inner, new) for inner in processor]
    changed = dict(processor)
    for name in ("cls", "sep"):
        if isinstance(changed.get(name), list):
            changed[name] = [changed[name][0], new[changed[name][1]]]
    if changed.get("special_tokens"):
        tokens = changed["special_tokens"].items()
        changed["special_tokens"] = {name: t | {"ids": [new[i] for i in t["ids"]]} for name, t in tokens}
    if changed.get("processors"):
        changed["processors"] = _renumbered(changed["processors"], new)
    return changed
