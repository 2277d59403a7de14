"""A user's texts outside jobs, read as jobs read rows: to calibrate on, or to see which tokens are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dnge_compress.core.errors import DataError
from dnge_compress.core.wording import several
from dnge_compress.data.chat import check_template, rendered, renderings
from dnge_compress.data.conversations import Conversation
from dnge_compress.data.formats import Placed, RowFile
from dnge_compress.data.lessons import CONVERSATIONS, MAY_SPEAK, Answer, Lesson, lesson
from dnge_compress.data.pieces import encode_whole
from dnge_compress.data.rows import Collator
from dnge_compress.data.sources import Opened, opened, source_of
from dnge_compress.data.spread import Spread
from dnge_compress.recipes.data_schema import Dataset
from dnge_compress.recipes.schema import LEAST_TOKENS, Calibration
from dnge_compress.signals.calibration import BATCH_TOKENS
from dnge_compress.signals.inference import Inputs, device_of, writes_text
from dnge_compress.signals.sampled_text import text_length
from dnge_compress.signals.tokenizer import needed_tokenizer, tokenizer_of
from dnge_compress.signals.user_data import UserData

PIECE = 100_000  # characters of a .txt file that are cut up as one text, at least
WINDOW = 256  # tokens of a text that is judged
JUDGED_TOKENS = 16384  # of a file, at most


def read_texts(given: str | Path, model: nn.Module, calibration: Calibration) -> UserData:
    """Batches of the texts of what --data names (`source_of`), on the model's device, and what was cut; a .txt file has
    a text on every line. See `texts_batches`. Raises DataError for what can't be read or holds too little."""
    found = opened(source_of(given), Path.cwd())
    return texts_batches(_rows(found), found, model, calibration)


def texts_batches(rows: Placed, found: Opened, model: nn.Module, calibration: Calibration) -> UserData:
    """Batches of the texts in rows, each cut at the calibration's length, on the model's device, and what was cut. Of
    more tokens than it asks for, as many are taken, of rows spread evenly over all.

    Texts of similar length share a batch, so that little is padded. Raises DataError for rows that hold too little.
    """
    tokenizer = tokenizer_for(model)
    length, counts = text_length(model, calibration.length), Counter[str]()
    spread = Spread(calibration.tokens)
    for text, options in _texts(rows, found.source, tokenizer, counts):
        spread.add(partial(encode_whole, text, tokenizer, length, **options))
    name = f"'{Path(found.source.path).name}'"
    is_plain = found.said == "text (text)"
    notes = () if is_plain else (f"{name} is read as {found.said}",)
    return spread_batches(spread, name, model, length, counts["empty"], notes)


def spread_batches(
    spread: Spread, name: str, model: nn.Module, length: int, empty: int = 0, notes: tuple[str, ...] = ()
) -> UserData:
    """Batches of the rows that were spread, of at most so many tokens each, on the model's device, and a note on them.
    Raises DataError where that is too little."""
    taken = spread.rows()
    rows = [row for row in taken if row[0]]
    tokens = sum(len(ids) for ids, _ in rows)
    if tokens < LEAST_TOKENS:
        raise DataError(
            f"the data {name} hold {several(tokens, 'token')} in {several(len(rows), 'row')}, "
            f"and calibration needs at least {LEAST_TOKENS}; give more text, or leave the data out"
        )
    number = sum(is_cut for _, is_cut in rows)
    cut = f", {number} of them cut at {length} tokens" if number else ""
    without = f"; {several(empty, 'row')} without text left out" if empty else ""
    which = several(len(rows), "row")
    if len(taken) < spread.seen:
        which = f"{len(rows):,} of {spread.seen:,} rows, spread evenly (calibration.tokens asks for as many),"
    note = f"calibrated on {which} of {name} with {tokens:,} tokens{cut}{without}"
    return UserData(tuple(_batches([ids for ids, _ in rows], model, length)), (note, *notes))


def texts_in(given: str | Path, model: nn.Module) -> Iterator[str]:
    """The texts of what --data names; see `texts_of`. Raises DataError."""
    return texts_of(source_of(given), model)


def texts_of(source: Dataset, model: nn.Module) -> Iterator[str]:
    """The texts of a source as the model will meet them: whole, prompts alone, and conversations up to each turn that
    is written otherwise while it is the last; of .txt files their lines, and long pieces of the whole, so that the
    tokens of line ends and indents count as used. Raises DataError."""
    found = opened(source, Path.cwd())
    tokenizer: Any = None
    if found.source.type in MAY_SPEAK:
        tokenizer = tokenizer_for(model)
    rows = _rows(found)
    if any(isinstance(table, RowFile) and table.suffix == ".txt" for table in found.tables):
        yield from _lines_and_pieces(row["text"] for _, row in rows)
        return
    for place, taught in _lessons(rows, found.source, tokenizer):
        if isinstance(taught, Conversation):
            yield from renderings(taught, tokenizer, place)
        elif taught is not None:
            parts = (taught.prompt, taught.completion) if isinstance(taught, Answer) else (taught,)
            yield from dict.fromkeys(("".join(parts), "".join(parts).strip(), *parts))


def _lines_and_pieces(lines: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    size = 0
    for line in lines:
        if line.strip():
            yield line.strip()
        block.append(line)
        size += len(line)
        if size >= PIECE:
            yield "".join(block)
            block, size = [], 0
    yield "".join(block)


def read_windows(given: str | Path, model: nn.Module) -> UserData:
    """Batches of the held-out text that --data names, on the model's device, to judge a model by, and how much was
    taken.

    For a causal language model all texts are joined by empty lines and cut into windows of WINDOW tokens, without
    special ones (or of as many as it has positions for); other models read each row. Of a long file JUDGED_TOKENS are
    taken, in windows or rows that lie evenly spread over it. Raises DataError.
    """
    length = text_length(model, WINDOW)
    if not writes_text(model):
        return read_texts(given, model, Calibration(tokens=JUDGED_TOKENS, length=length))
    tokenizer, counts = tokenizer_for(model), Counter[str]()
    found = opened(source_of(given), Path.cwd())
    text = "\n\n".join(text for text, _ in _texts(_rows(found), found.source, tokenizer, counts))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    name = Path(found.source.path).name
    if len(ids) < LEAST_TOKENS:
        raise DataError(f"'{name}' holds {several(len(ids), 'token')}; at least {LEAST_TOKENS} are needed to judge by")
    length = min(length, len(ids))
    windows = ids[: len(ids) // length * length].view(-1, length)
    taken = windows[_evenly(len(windows), JUDGED_TOKENS // length)].to(device_of(model))
    note = f"judged on {taken.numel():,} of {len(ids):,} tokens of '{name}'"
    return UserData(tuple({"input_ids": part} for part in taken.split(max(1, BATCH_TOKENS // length))), (note,))


def _rows(found: Opened) -> Placed:
    """The rows of a source, as many as it asks for."""
    return islice((placed for table in found.tables for placed in table), found.source.max_rows)


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the first `count` numbers, evenly spread."""
    return sorted({i * count // min(count, most) for i in range(min(count, most))})


def _texts(
    rows: Placed, source: Dataset, tokenizer: Any, counts: Counter[str]
) -> Iterator[tuple[str, dict[str, bool]]]:
    """The text of each row, and how to tokenise it: a chat template brings its special tokens along."""
    for place, taught in _lessons(rows, source, tokenizer):
        if taught is None:
            counts["empty"] += 1
        elif isinstance(taught, Conversation):
            yield rendered(taught, tokenizer, place), {"add_special_tokens": False}
        elif isinstance(taught, Answer):
            yield (taught.prompt + taught.completion).strip(), {}
        else:
            yield taught.strip(), {}


def _lessons(rows: Placed | RowFile, source: Dataset, tokenizer: Any) -> Iterator[tuple[str, Lesson | None]]:
    if source.type in CONVERSATIONS:
        check_template(tokenizer)
    for place, row in rows:
        yield place, lesson(row, source, place, speaks=bool(tokenizer is not None and tokenizer.chat_template))


def _batches(rows: list[list[int]], model: nn.Module, length: int) -> Iterator[Inputs]:
    """Padded at the right to the longest row of the batch; padding isn't attended to, so its token doesn't matter."""
    tokenizer = tokenizer_of(str(getattr(model, "name_or_path", "") or ""))
    collate, device = Collator.of(tokenizer) if tokenizer is not None else Collator(), device_of(model)
    rows = sorted(rows, key=len)
    size = max(1, BATCH_TOKENS // length)
    for first in range(0, len(rows), size):
        ids = [np.array(row, dtype=np.int64) for row in rows[first : first + size]]
        batch = collate([{"input_ids": row, "labels": row} for row in ids])
        yield {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def tokenizer_for(model: Any) -> Any:
    """The tokenizer of a model that reads text. Raises DataError."""
    if getattr(model, "main_input_name", None) != "input_ids":
        what = f"the data give text, but a {type(model).__name__} doesn't read any"
        raise DataError(f"{what}; give its inputs as tensors, in Python (data=…)")
    return needed_tokenizer(model.name_or_path or "", "to read --data with")
