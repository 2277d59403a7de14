"""What a user gives as `data` in Python: batches as the model takes them, or rows as jobs read them from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnge_compress.core.errors import DataError
from dnge_compress.data.kinds import said, told
from dnge_compress.data.labels import without_labels
from dnge_compress.data.sources import Opened
from dnge_compress.data.spread import Spread
from dnge_compress.data.texts import JUDGED_TOKENS, WINDOW, read_texts, spread_batches, texts_batches
from dnge_compress.recipes.data_schema import COLUMNS, Dataset
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.sampled_text import text_length
from dnge_compress.signals.user_data import UserData, checked_data

JUDGED = Calibration(tokens=JUDGED_TOKENS, length=WINDOW)  # of rows that judge a model
NAME = "data"  # what rows are called in notes and errors
IDS, MASK, PIXELS = "input_ids", "attention_mask", "pixel_values"
IMAGES = 8  # in a batch


def given_data(data: Any, model: nn.Module, calibration: Calibration) -> UserData:
    """Batches on the model's device from whatever was given:

    - batches of the model's inputs: tensors, tuples or dicts of them, as a DataLoader gives them, with or without
      labels;
    - rows: texts, or dicts with text, prompt and completion, messages, … as jobs read them, as a `datasets.Dataset`
      gives them; columns of texts in the place of single ones, as a DataLoader makes of such rows;
    - tokenised rows (lists, arrays or tensors `input_ids` [tokens]), and images (`pixel_values` [channels, height,
      width]);
    - the path of a file or folder of rows, or a hub id.

    Of texts and tokenised rows as many are taken as the calibration asks for, each cut at its length. Raises DataError.
    """
    if isinstance(data, UserData):
        return checked_data(data, model)
    if isinstance(data, str | Path):
        return checked_data(read_texts(data, model, calibration), model)
    _refuse_splits(data)
    if not isinstance(data, Iterable) or isinstance(data, Tensor | Mapping):
        return checked_data(data, model)  # which says what is wrong
    rows = iter(data)
    first = next(rows, None)
    rows = chain(() if first is None else (first,), rows)
    if isinstance(first, str) or (isinstance(first, Mapping) and _is_row(first)):
        return checked_data(_batches(rows, first, model, calibration), model)
    return checked_data(without_labels(data if isinstance(data, Sequence) else list(rows), model), model)


def _refuse_splits(data: Any) -> None:
    if isinstance(data, Mapping) and data and all(hasattr(part, "column_names") for part in data.values()):
        names = ", ".join(map(str, data))
        raise DataError(f"data holds several splits ({names}); pass one of them, data['{next(iter(data))}']")
    if hasattr(data, "iterrows"):  # pandas' tables, which are iterated by the names of their columns
        raise DataError("data is a table, which isn't read by rows; pass data.to_dict('records')")


def _is_row(first: Mapping[str, Any]) -> bool:
    """Whether a mapping is no batch of tensors."""
    if _token_row(first) is not None or _image_row(first) is not None:
        return True
    return not any(isinstance(value, Tensor) and value.dim() for value in first.values()) or _is_columns(first)


def _batches(rows: Iterator[Any], first: Any, model: nn.Module, calibration: Calibration) -> UserData:
    if isinstance(first, Mapping) and _token_row(first) is not None:
        return _tokenised(rows, model, calibration)
    if isinstance(first, Mapping) and _image_row(first) is not None:
        return _images(rows, model)
    if isinstance(first, Mapping) and _is_columns(first):
        rows = (row for columns in rows for row in _from_columns(columns))
    placed = (
        (f"data row {i}", dict(row) if isinstance(row, Mapping) else {"text": row}) for i, row in enumerate(rows, 1)
    )
    place, row = next(placed)
    source = told(Dataset(path=NAME), row, place)
    found = Opened(source, said(source, row), ())
    return texts_batches(chain([(place, row)], placed), found, model, calibration)


def _is_columns(row: Mapping[str, Any]) -> bool:
    columns = (texts for texts in _texts(row).values() if isinstance(texts, list | tuple))
    return any(texts and isinstance(texts[0], str) for texts in columns)


def _from_columns(columns: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    texts = _texts(columns)
    if len({len(values) if isinstance(values, list | tuple) else None for values in texts.values()}) > 1:
        raise DataError(f"data gives {', '.join(texts)} in unequal numbers; give as many texts of each")
    for values in zip(*texts.values(), strict=True):
        yield dict(zip(texts, values, strict=True))


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that hold text in rows of any type."""
    named = {name for kind in ("text", "prompt_completion", "alpaca") for name in COLUMNS[kind]} | {"input", "system"}
    return {name: row[name] for name in row if name in named}


def _tokenised(rows: Iterable[Mapping[str, Any]], model: nn.Module, calibration: Calibration) -> UserData:
    length = text_length(model, calibration.length)
    spread, empty = Spread(calibration.tokens), 0
    for i, row in enumerate(rows, 1):
        ids = _token_row(row, i)
        if ids is None:
            raise DataError(f"data row {i} holds no {IDS} [tokens], as the first row does; give rows of one kind")
        if ids:
            spread.add(partial(_cut, ids, length))
        empty += not ids
    return spread_batches(spread, f"'{NAME}'", model, length, empty)


def _cut(ids: list[int], length: int) -> tuple[list[int], bool]:
    return ids[:length], len(ids) > length


def _token_row(row: Mapping[str, Any], number: int = 1) -> list[int] | None:
    """The token ids of the row of that number, without its padding; None for something else. Raises DataError."""
    ids = _array(row.get(IDS))
    if ids is None or ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        return None
    mask = _array(row.get(MASK))
    if mask is not None and mask.shape != ids.shape:
        shapes = f"{IDS} of {list(ids.shape)} and {MASK} of {list(mask.shape)}"
        raise DataError(f"data row {number} has {shapes}; make them equal")
    kept = ids if mask is None else ids[mask.astype(bool)]
    return [int(i) for i in kept]


def _images(rows: Iterable[Mapping[str, Any]], model: nn.Module) -> UserData:
    found: list[Tensor] = []
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for i, row in enumerate(rows, 1):
        image = _image_row(row)
        if image is None or (found and image.shape != found[0].shape):
            raise DataError(f"data row {i} holds no {PIXELS} of the first row's shape; give images of one size")
        found.append(image.to(dtype))
    return UserData(tuple({PIXELS: batch} for batch in torch.stack(found).split(IMAGES)))


def _image_row(row: Mapping[str, Any]) -> Tensor | None:
    """The pixels [channels, height, width] of one row; None for something else."""
    pixels = _array(row.get(PIXELS))
    return None if pixels is None or pixels.ndim != 3 else torch.as_tensor(pixels, dtype=torch.float32)


def _array(value: Any) -> np.ndarray | None:
    """A list of numbers, an array or a tensor as an array; None for anything else."""
    if isinstance(value, Tensor):
        found = value.detach().cpu()
        return np.asarray(found.float() if found.is_floating_point() else found)  # NumPy has no bfloat16
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.array(value) if isinstance(value, list | tuple) else None
    except ValueError:  # lists of several lengths
        return None
