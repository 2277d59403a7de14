"""The books as byte or BPE tokens.

Trained tokenizers and token streams are kept in the cache and memory-mapped, so that many training processes
share one copy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnge_compress.core.errors import DataError, UnknownNameError
from dnge_compress.core.files import atomic_file
from dnge_compress.zoo.data_root import DataRoot, Split, cached, table

TEXTS = ("books-bytes", "books-bpe1024", "books-bpe2048")
VOCABULARY = {"books-bytes": 256, "books-bpe1024": 1024, "books-bpe2048": 2048}

_BOOKS = {"train": "books_train.parquet", "held-out": "books_valid.parquet"}
_BPE_TRAINING_CHARACTERS = 8_000_000


def tokens(name: str, split: Split, *, data_root: DataRoot) -> np.ndarray:
    """Token stream of the books, all after one another: integers [N], memory-mapped.

    Raises: DataError if the file, pyarrow or tokenizers is missing.
    """
    if name not in VOCABULARY:
        raise UnknownNameError("text data set", name, TEXTS)
    return cached(data_root.cache / f"{name}-{split}.npy", lambda: _encode(name, split, data_root))


def unigram(name: str, *, data_root: DataRoot) -> Tensor:
    """Log probabilities of the train split's tokens, each counted once more than seen: float32 [V]."""
    stream = np.asarray(tokens(name, "train", data_root=data_root))
    counts = torch.from_numpy(np.bincount(stream, minlength=VOCABULARY[name]) + 1).double()
    return (counts / counts.sum()).log().float()


def book_texts(split: Split, data_root: DataRoot) -> list[str]:
    """The books of one split, whole. Raises: DataError if the file or pyarrow is missing."""
    return table(_BOOKS[split], data_root, ("text",))["text"].to_pylist()


def _encode(name: str, split: Split, data_root: DataRoot) -> np.ndarray:
    if name == "books-bytes":
        return np.frombuffer("\n\n".join(book_texts(split, data_root)).encode("utf-8"), dtype=np.uint8)
    tokenizer = _tokenizer(VOCABULARY[name], data_root)
    return np.concatenate([np.array(tokenizer.encode(t).ids, dtype=np.int16) for t in book_texts(split, data_root)])


def tokenizer_folder(name: str, *, data_root: DataRoot) -> Path:
    """A folder from which transformers loads the tokenizer of a text data set; made on first use."""
    folder = data_root.cache / f"{name}-tokenizer"
    if not folder.exists():
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        if name == "books-bytes":
            inner = Tokenizer(models.BPE({letter: byte for byte, letter in bytes_to_unicode().items()}, []))
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            inner.decoder = decoders.ByteLevel()
        else:
            inner = _tokenizer(VOCABULARY[name], data_root)
        data_root.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_root.cache) as half:
            PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(half)
            Path(half).chmod(0o755)
            try:
                Path(half).rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            Path(half).mkdir(exist_ok=True)
    return folder


def _tokenizer(vocabulary: int, data_root: DataRoot) -> Any:
    """Byte-level BPE with `vocabulary` entries, trained on the first part of the train books."""
    try:
        from tokenizers import ByteLevelBPETokenizer, Tokenizer
    except ImportError as error:
        raise DataError("BPE tokens need the tokenizers package: pip install tokenizers") from error
    path = data_root.cache / f"books-bpe{vocabulary}.json"
    if not path.exists():
        trained = ByteLevelBPETokenizer()
        text = "\n\n".join(book_texts("train", data_root))[:_BPE_TRAINING_CHARACTERS]
        trained.train_from_iterator(text.split("\n\n"), vocab_size=vocabulary, show_progress=False)
        with atomic_file(path) as part:
            trained.save(str(part))
    return Tokenizer.from_file(str(path))
