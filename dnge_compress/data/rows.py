"""Tokenised rows as values: collected, counted, stored, and put into batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from dnge_compress.core.errors import DataError
from dnge_compress.core.files import atomic_file
from dnge_compress.data.kinship import Kinship
from dnge_compress.data.pieces import Row

NOT_LEARNED = -100


@dataclass(frozen=True)
class Rows:
    """Tokenised rows ready for training.

    `counts`: what was "read" (rows of the sources), "empty" (skipped: nothing to learn), "cut" (longer than
    `max_length`), "overlong" (skipped: the cut left nothing to learn); and the result: "rows", their "tokens", and
    "learned_tokens". A row's first token is never among these, for nothing predicts it. `notes` say as what the sources
    were read. `groups` says of every row which conversation it is of, in numbers; empty where each is its own.
    """

    examples: Examples
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False)

    def part(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`, in that order, without the notes."""
        examples = self.examples.take(indices)
        return Rows(examples, _sizes(examples), groups=self.groups[indices] if len(self.groups) else self.groups)


@dataclass(frozen=True)
class Collator:
    """A batch of rows as tensors, padded at the right to the longest."""

    pad_token_id: int = 0

    @classmethod
    def of(cls, tokenizer: Any) -> Collator:
        """With the padding of a tokenizer, or its end-of-text token; neither is attended to or learned."""
        known = (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None)
        return cls(next(known, 0))

    def __call__(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
        """Token ids, attention mask and labels `[rows, longest]`."""
        lengths = [len(row["input_ids"]) for row in rows]
        ids = torch.full((len(rows), max(lengths)), self.pad_token_id)
        labels, mask = torch.full_like(ids, NOT_LEARNED), torch.zeros_like(ids)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[i, :length] = torch.as_tensor(row["input_ids"])
            labels[i, :length] = torch.as_tensor(row["labels"])
            mask[i, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows as one array of token ids and one of whether each is learned; row i is `starts[i]:starts[i + 1]`, and
    `real[i]` says whether somebody gave it, and no model wrote any of it.

    A sequence of dicts `{input_ids, labels}`, as trainers and `Collator` take them.
    """

    ids: np.ndarray
    learned: np.ndarray
    starts: np.ndarray
    real: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = range(len(self))[index]
        span = slice(self.starts[row], self.starts[row + 1])
        ids = self.ids[span].astype(np.int64)
        return {"input_ids": ids, "labels": np.where(self.learned[span], ids, NOT_LEARNED)}

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all. Raises CheckpointError."""
        with atomic_file(path) as part:
            save_file({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}, part)

    @classmethod
    def load(cls, path: Path) -> Examples:
        """The rows that `save` wrote, so that every process and every restart trains on the same."""
        return cls(**load_file(path))

    def take(self, indices: Sequence[int]) -> Examples:
        """The rows at `indices`, in that order."""
        spans = [slice(self.starts[i], self.starts[i + 1]) for i in indices]
        return _examples(
            [self.ids[s] for s in spans], [self.learned[s] for s in spans], [self.real[i] for i in indices]
        )

    def spread(self, most: int) -> Examples:
        """So many rows at most, evenly spread: rows of several sources stand one source after another."""
        count = min(len(self), most)
        return self.take([i * len(self) // count for i in range(count)])


class Ledger:
    """Collects rows of at most `max_length` tokens, and counts them; with `packing`, texts share rows."""

    def __init__(self, max_length: int, packing: bool) -> None:
        self.max_length, self.packing = max_length, packing
        self.counts: Counter[str] = Counter()
        self.kinship = Kinship()
        self._ids: list[np.ndarray] = []
        self._learned: list[np.ndarray] = []
        self._real: list[bool] = []
        self._lessons: list[int] = []
        self._stream: list[np.ndarray] = []
        self._stream_real: list[np.ndarray] = []

    def add(self, row: Row, *, is_real: bool = True, lesson: int | None = None) -> None:
        """A row of its own, cut at `max_length`, unless nothing of it can be learned; of a `lesson` by the number that
        the kinship gave it."""
        is_long = len(row.ids) > self.max_length
        ids = np.array(row.ids[: self.max_length], dtype=np.int32)
        learned = np.array(row.learned[: self.max_length], dtype=bool)
        # Nothing predicts a row's first token; so the labels that count are exactly those that are learned.
        learned[:1] = False
        if not learned.any():
            self.counts["overlong" if is_long else "empty"] += 1
            return
        self.counts["cut"] += is_long
        self._ids.append(ids)
        self._learned.append(learned)
        self._real.append(is_real)
        self._lessons.append(self.kinship.add() if lesson is None else lesson)

    def add_text(self, ids: list[int], *, is_real: bool = True, lesson: int | None = None) -> None:
        """A text that is learned as a whole: packed with others, or a row of its own."""
        if self.packing:
            self._stream.append(np.array(ids, dtype=np.int32))
            self._stream_real.append(np.full(len(ids), is_real))
        else:
            self.add(Row(ids, [True] * len(ids)), is_real=is_real, lesson=lesson)

    def rows(self) -> Rows:
        """All rows, with the packed ones cut from the stream of texts. Raises DataError if there are none."""
        stream = np.concatenate(self._stream) if self._stream else np.zeros(0, np.int32)
        real = np.concatenate(self._stream_real) if self._stream else np.zeros(0, bool)
        for first in range(0, len(stream) - 1, self.max_length):  # a last row of one token would teach nothing
            packed = stream[first : first + self.max_length]
            self._ids.append(packed)
            self._learned.append(np.arange(len(packed)) > 0)
            self._real.append(bool(real[first : first + self.max_length].all()))
            self._lessons.append(self.kinship.add())
        c = self.counts
        if not self._ids:
            raise DataError(
                f"the data hold nothing to learn: of {c['read']} rows {c['empty']} are empty, and {c['overlong']} have "
                f"nothing that is learned among their first {self.max_length} tokens (max_length)"
            )
        examples = _examples(self._ids, self._learned, self._real)
        counts = {k: c[k] for k in ("read", "empty", "cut", "overlong")} | _sizes(examples)
        return Rows(examples, counts, groups=self.kinship.groups()[self._lessons])


def _examples(ids: Sequence[np.ndarray], learned: Sequence[np.ndarray], real: Sequence[bool]) -> Examples:
    starts, given = np.cumsum([0, *(len(row) for row in ids)]), np.array(real, dtype=bool)
    if not ids:
        return Examples(np.zeros(0, np.int32), np.zeros(0, bool), starts, given)
    return Examples(np.concatenate(ids), np.concatenate(learned), starts, given)


def _sizes(examples: Examples) -> dict[str, int]:
    return {"rows": len(examples), "tokens": len(examples.ids), "learned_tokens": int(examples.learned.sum())}
