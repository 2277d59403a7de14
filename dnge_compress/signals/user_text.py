"""Real text as model inputs: one text per line, tokenised with the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer

from dnge_compress.core.errors import DataError
from dnge_compress.signals.calibration import BATCH_TOKENS
from dnge_compress.signals.inference import Inputs, device_of


def read_texts(path: Path, model: nn.Module, length: int) -> list[Inputs]:
    """Batches of the texts in a file, cut at `length` tokens, on the model's device. Raises DataError.

    Texts of similar length share a batch, so that little is padded.
    """
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"data file '{path}' can't be read: {getattr(e, 'strerror', None) or e}") from None
    if not texts:
        raise DataError(f"data file '{path}' holds no text; write one text per line")
    tokenizer = _tokenizer_of(model)
    rows = [ids for text in texts if (ids := tokenizer(text, truncation=True, max_length=length)["input_ids"])]
    rows.sort(key=len)
    size = max(1, BATCH_TOKENS // length)
    batches: list[Inputs] = []
    for first in range(0, len(rows), size):
        batch = tokenizer.pad({"input_ids": rows[first : first + size]}, return_tensors="pt").to(device_of(model))
        batches.append({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    return batches


def _tokenizer_of(model: Any) -> Any:
    if getattr(model, "main_input_name", None) != "input_ids":
        raise DataError(f"--data gives text, but a {type(model).__name__} doesn't read any; use data=… in Python")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise DataError(f"'{model.name_or_path}' has no tokenizer for --data: {reason}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer
