"""Which rows belong to one conversation, so that a split leaves them on one side: otherwise a model would be judged by
what it has learned."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from dnge_compress.data.conversations import Conversation
from dnge_compress.data.lessons import Answer, Lesson
from dnge_compress.recipes.data_schema import Dataset

Sign = tuple[str, bytes]  # "id" or "turn", and a digest of it
# A first turn that more than this share of the lessons have, of so many at least, is an instruction to all of them.
COMMON, SEVERAL = 0.5, 20


def signs_of(row: Mapping[str, Any], source: Dataset, found: Lesson) -> tuple[Sign, ...]:
    """What tells that two lessons are of one conversation: the id of a source's row, and what the user says first, a
    prompt included. Blank ones tell nothing."""
    column = source.column("id")
    identity = row.get(column) if column else None
    signs = []
    if not _is_blank(identity):
        signs.append(("id", _digest([source.path, identity])))
    turn = _first_turn(found)
    if turn.strip():
        signs.append(("turn", _digest(turn)))
    return tuple(signs)


class Kinship:
    """Collects the signs of lessons, and puts those together that share one."""

    def __init__(self) -> None:
        self._signs: list[tuple[Sign, ...]] = []

    def add(self, signs: tuple[Sign, ...] = ()) -> int:
        """The number of a lesson, by which its rows are known."""
        self._signs.append(signs)
        return len(self._signs) - 1

    def groups(self) -> np.ndarray:
        """The number of a group for every lesson; those of one conversation, also by way of others, share it."""
        counts = Counter(sign for signs in self._signs for sign in signs)
        most = max(SEVERAL, COMMON * len(self._signs))
        roots, first = list(range(len(self._signs))), dict[Sign, int]()
        for number, signs in enumerate(self._signs):
            for sign in signs:
                if counts[sign] > 1 and (sign[0] == "id" or counts[sign] <= most):
                    _join(roots, number, first.setdefault(sign, number))
        return np.array([_root(roots, number) for number in range(len(roots))], dtype=np.int64)


def _is_blank(identity: Any) -> bool:
    """Whether an id is missing; tables write that as NaN too. 0 is an id."""
    is_nan = isinstance(identity, float) and math.isnan(identity)
    return is_nan or identity in (None, [], {}) or (isinstance(identity, str) and not identity.strip())


def _first_turn(found: Lesson) -> str:
    if isinstance(found, Answer):
        return found.prompt
    if isinstance(found, Conversation):
        return next((str(m.get("content") or "") for m in found.messages if m["role"] == "user"), "")
    return ""


def _digest(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _root(roots: list[int], number: int) -> int:
    while roots[number] != number:
        roots[number] = roots[roots[number]]
        number = roots[number]
    return number


def _join(roots: list[int], one: int, other: int) -> None:
    low, high = sorted((_root(roots, one), _root(roots, other)))
    roots[high] = low
