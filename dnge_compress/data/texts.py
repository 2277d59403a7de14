"""A user's texts outside jobs, read as jobs read rows: to calibrate on, or to see which tokens are used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnge_compress.core.errors import DataError
from dnge_compress.core.wording import several
from dnge_compress.data.chat import check_template, rendered
from dnge_compress.data.fields import fields
from dnge_compress.data.formats import RowFile
from dnge_compress.data.sources import source_of
from dnge_compress.recipes.job_schema import Dataset
from dnge_compress.recipes.schema import LEAST_TOKENS, Calibration
from dnge_compress.signals.calibration import BATCH_TOKENS
from dnge_compress.signals.inference import Inputs, device_of, writes_text
from dnge_compress.signals.sampled_text import text_length
from dnge_compress.signals.tokenizer import needed_tokenizer
from dnge_compress.signals.user_data import UserData

PIECE = 100_000  # characters of a .txt file that are cut up as one text, at least
WINDOW = 256  # tokens of a text that is judged
JUDGED_TOKENS = 16384  # of a file, at most


def read_texts(path: Path, model: nn.Module, calibration: Calibration) -> UserData:
    """Batches of the texts in a file of rows, each cut at the calibration's length, on the model's device, and what was
    cut. Of more tokens than it asks for, as many are taken, of rows spread evenly over the file.

    Rows hold text, or prompt and completion, or messages; a .txt file has a text on every line. Texts of similar length
    share a batch, so that little is padded. Raises DataError for a file that can't be read or holds too little.
    """
    source = source_of(path)
    tokenizer = _tokenizer_of(model)
    length, counts = text_length(model, calibration.length), Counter[str]()
    spread = _Spread(calibration.tokens)
    for text, options in _texts(source, tokenizer, counts):
        spread.add(partial(_tokenised, tokenizer, text, length, options))
    taken = spread.rows()
    rows = [row for row in taken if row[0]]
    tokens = sum(len(ids) for ids, _ in rows)
    if tokens < LEAST_TOKENS:
        raise DataError(
            f"data file '{path}' holds {several(tokens, 'token')} in {several(len(rows), 'row')}, "
            f"and calibration needs at least {LEAST_TOKENS}; give more text, or leave --data out"
        )
    number = sum(is_cut for _, is_cut in rows)
    cut = f", {number} of them cut at {length} tokens" if number else ""
    empty = f"; {several(counts['empty'], 'row')} without text left out" if counts["empty"] else ""
    which = several(len(rows), "row")
    if len(taken) < spread.seen:
        which = f"{len(rows):,} of {spread.seen:,} rows, spread evenly (calibration.tokens asks for as many),"
    note = f"calibrated on {which} of '{path.name}' with {tokens:,} tokens{cut}{empty}"
    return UserData(tuple(_batches([ids for ids, _ in rows], tokenizer, model, length)), (note,))


def texts_in(path: Path, model: nn.Module) -> Iterator[str]:
    """The texts of a file of rows, as the model will meet them: whole, and prompts alone; of a .txt file its lines, and
    long pieces of the whole, so that the tokens of line ends and indents count as used. Raises DataError."""
    source = source_of(path)
    tokenizer: Any = None
    if source.type == "messages":
        tokenizer = _tokenizer_of(model)
        check_template(tokenizer)
    table = RowFile(path, source)
    if table.suffix == ".txt":
        yield from _lines_and_pieces(row["text"] for _, row in table)
        return
    for place, row in table:
        ours = fields(row, source, place)
        if ours is not None and source.type == "messages":
            yield rendered(ours["messages"], tokenizer, place)
        elif ours is not None:
            yield from dict.fromkeys(("".join(ours.values()), "".join(ours.values()).strip(), *ours.values()))


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


class _Spread:
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


def _tokenised(tokenizer: Any, text: str, length: int, options: Mapping[str, bool]) -> tuple[list[int], bool]:
    """The tokens of a text, cut at `length`, and whether that cut any."""
    ids = tokenizer(text, verbose=False, **options)["input_ids"]
    if len(ids) <= length:
        return ids, False
    return tokenizer(text, truncation=True, max_length=length, **options)["input_ids"], True


def read_windows(path: Path, model: nn.Module) -> UserData:
    """Batches of held-out text in a file of rows, on the model's device, to judge a model by, and how much was taken.

    For a causal language model all texts are joined by empty lines and cut into windows of WINDOW tokens, without
    special ones (or of as many as it has positions for); other models read each row. Of a long file JUDGED_TOKENS are
    taken, in windows or rows that lie evenly spread over it. Raises DataError.
    """
    length = text_length(model, WINDOW)
    if not writes_text(model):
        return read_texts(path, model, Calibration(tokens=JUDGED_TOKENS, length=length))
    tokenizer, counts = _tokenizer_of(model), Counter[str]()
    text = "\n\n".join(text for text, _ in _texts(source_of(path), tokenizer, counts))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < LEAST_TOKENS:
        raise DataError(f"'{path}' holds {several(len(ids), 'token')}; at least {LEAST_TOKENS} are needed to judge by")
    length = min(length, len(ids))
    windows = ids[: len(ids) // length * length].view(-1, length)
    taken = windows[_evenly(len(windows), JUDGED_TOKENS // length)].to(device_of(model))
    note = f"judged on {taken.numel():,} of {len(ids):,} tokens of '{path.name}'"
    return UserData(tuple({"input_ids": part} for part in taken.split(max(1, BATCH_TOKENS // length))), (note,))


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the first `count` numbers, evenly spread."""
    return sorted({i * count // min(count, most) for i in range(min(count, most))})


def _texts(source: Dataset, tokenizer: Any, counts: Counter[str]) -> Iterator[tuple[str, dict[str, bool]]]:
    """The text of each row, and how to tokenise it: a chat template brings its special tokens along."""
    if source.type == "messages":
        check_template(tokenizer)
    for place, row in RowFile(Path(source.path), source):
        ours = fields(row, source, place)
        if ours is None:
            counts["empty"] += 1
        elif source.type == "messages":
            yield rendered(ours["messages"], tokenizer, place), {"add_special_tokens": False}
        else:
            yield "".join(ours.values()).strip(), {}


def _batches(rows: list[list[int]], tokenizer: Any, model: nn.Module, length: int) -> Iterator[Inputs]:
    rows = sorted(rows, key=len)
    size = max(1, BATCH_TOKENS // length)
    for first in range(0, len(rows), size):
        batch = tokenizer.pad({"input_ids": rows[first : first + size]}, return_tensors="pt").to(device_of(model))
        yield {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def _tokenizer_of(model: Any) -> Any:
    if getattr(model, "main_input_name", None) != "input_ids":
        raise DataError(f"--data gives text, but a {type(model).__name__} doesn't read any; use data=… in Python")
    tokenizer = needed_tokenizer(model.name_or_path or "", "to read --data with")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer
