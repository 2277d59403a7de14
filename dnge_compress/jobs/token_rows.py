"""Tokenised rows on disk: one safetensors file, so that every process and every restart trains on the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset


class TokenRows(Dataset):  # type: ignore[type-arg]
    """Rows of `input_ids` and `labels` (-100 where nothing is learned), of any length each."""

    def __init__(self, ids: Tensor, labels: Tensor, ends: Tensor) -> None:
        self._ids, self._labels = ids, labels
        self._bounds = [0, *ends.tolist()]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        part = slice(self._bounds[row], self._bounds[row + 1])
        return {"input_ids": self._ids[part].tolist(), "labels": self._labels[part].tolist()}


def write_rows(path: Path, rows: Iterable[Mapping[str, list[int]]]) -> None:
    """Write rows whole or not at all."""
    ids: list[int] = []
    labels: list[int] = []
    ends = []
    for row in rows:
        ids += row["input_ids"]
        labels += row["labels"]
        ends.append(len(ids))
    tensors = {
        "input_ids": torch.tensor(ids, dtype=torch.int32),
        "labels": torch.tensor(labels, dtype=torch.int32),
        "ends": torch.tensor(ends, dtype=torch.int64),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    save_file(tensors, part)
    part.replace(path)


def read_rows(path: Path) -> TokenRows:
    """The rows that `write_rows` wrote."""
    found = load_file(path)
    return TokenRows(found["input_ids"], found["labels"], found["ends"])
