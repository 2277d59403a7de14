"""The shared data sets as tensors: digits, photographs, and books as byte or BPE tokens.

What is slow to make (decoded photographs, trained tokenizers, token streams) is kept in a cache folder and
memory-mapped, so that many training processes share one copy.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dnge_compress.errors import DataError, UnknownNameError

Split = Literal["train", "held-out"]
IMAGES = ("mnist", "cifar10")
TEXTS = ("books-bytes", "books-bpe1024", "books-bpe2048")
VOCABULARY = {"books-bytes": 256, "books-bpe1024": 1024, "books-bpe2048": 2048}

_ROOT = Path(__file__).resolve().parents[2]
_BOOKS = {"train": "books_train.parquet", "held-out": "books_valid.parquet"}
_BPE_TRAINING_CHARACTERS = 8_000_000


@dataclass(frozen=True)
class Shelf:
    """Where the data sets lie, and where what is derived from them is kept."""

    data: Path
    cache: Path

    @classmethod
    def find(cls, data: Path | str | None = None, cache: Path | str | None = None) -> Shelf:
        """The folder given, else that of DNGE_DATA, else ../shared/data beside the repository.

        Raises: DataError if there is no such folder.
        """
        folder = Path(data or os.environ.get("DNGE_DATA") or _ROOT.parent / "shared" / "data")
        if not folder.is_dir():
            raise DataError(f"no data folder at {folder}; pass its path or set DNGE_DATA")
        return cls(folder, Path(cache or _ROOT / "zoo" / "cache"))

    def file(self, name: str) -> Path:
        """Path of one data file. Raises: DataError if it is missing."""
        path = self.data / name
        if not path.is_file():
            raise DataError(f"{name} is missing from {self.data}; pass the data folder or set DNGE_DATA")
        return path


@dataclass(frozen=True)
class Images:
    """Labelled images of one split; kept as uint8 and normalised batch by batch."""

    pixels: np.ndarray  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]
    mean: tuple[float, ...]  # per channel, of pixels / 255
    deviation: tuple[float, ...]

    def batch(self, index: Tensor) -> Tensor:
        """Images at `index` [B], normalised per channel: float32 [B, C, H, W]."""
        x = torch.from_numpy(self.pixels[index.numpy()]).float().div_(255)
        mean, deviation = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.deviation))
        return (x - mean) / deviation


def images(name: str, split: Split, *, shelf: Shelf) -> Images:
    """Load the images of `name` ("mnist" or "cifar10", the JPEG copy).

    Raises: DataError if the file, pyarrow or pillow is missing.
    """
    if name == "mnist":
        part = "train" if split == "train" else "test"
        with np.load(shelf.file("mnist.npz")) as file:
            pixels, labels = file[f"x_{part}"][:, None], file[f"y_{part}"]
        return Images(pixels, torch.from_numpy(labels).long(), (0.1307,), (0.3081,))
    if name == "cifar10":
        pixels = _cached(shelf.cache / f"cifar10-{split}.npy", lambda: _decode_cifar10(split, shelf))
        # Within a split the rows go round the ten classes, see the data sets' README.
        labels = _cached(shelf.cache / f"cifar10-{split}-labels.npy", lambda: _cifar10_labels(split, shelf))
        return Images(
            pixels, torch.from_numpy(labels.copy()).long(), (0.4913, 0.4821, 0.4465), (0.2452, 0.2428, 0.2606)
        )
    raise UnknownNameError("image data set", name, IMAGES)


def tokens(name: str, split: Split, *, shelf: Shelf) -> np.ndarray:
    """Token stream of the books, all after one another: integers [N], memory-mapped.

    Raises: DataError if the file, pyarrow or tokenizers is missing.
    """
    if name not in VOCABULARY:
        raise UnknownNameError("text data set", name, TEXTS)
    return _cached(shelf.cache / f"{name}-{split}.npy", lambda: _encode(name, split, shelf))


def unigram(name: str, *, shelf: Shelf) -> Tensor:
    """Log probabilities of the train split's tokens, each counted once more than seen: float32 [V]."""
    stream = np.asarray(tokens(name, "train", shelf=shelf))
    counts = torch.from_numpy(np.bincount(stream, minlength=VOCABULARY[name]) + 1).double()
    return (counts / counts.sum()).log().float()


def _cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            np.save(Path(folder) / path.name, make())
            (Path(folder) / path.name).replace(path)
    return np.load(path, mmap_mode="r")


def _table(file: str, shelf: Shelf) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("reading the data sets needs pyarrow: pip install 'dnge-compress[pretrain]'") from error
    return parquet.read_table(shelf.file(file))


def _cifar10(split: Split, shelf: Shelf) -> Any:
    table = _table("cifar10.parquet", shelf)
    part = "train" if split == "train" else "test"
    return table.filter(np.array([s == part for s in table["split"].to_pylist()]))


def _decode_cifar10(split: Split, shelf: Shelf) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("decoding CIFAR-10 needs pillow: pip install 'dnge-compress[pretrain]'") from error
    files = _cifar10(split, shelf)["jpeg"].to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])  # [N, 32, 32, 3]
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _cifar10_labels(split: Split, shelf: Shelf) -> np.ndarray:
    return _cifar10(split, shelf)["label"].to_numpy().astype(np.uint8)


def book_texts(split: Split, shelf: Shelf) -> list[str]:
    """The books of one split, whole. Raises: DataError if the file or pyarrow is missing."""
    return _table(_BOOKS[split], shelf)["text"].to_pylist()


def _encode(name: str, split: Split, shelf: Shelf) -> np.ndarray:
    if name == "books-bytes":
        return np.frombuffer("\n\n".join(book_texts(split, shelf)).encode("utf-8"), dtype=np.uint8)
    tokenizer = _tokenizer(VOCABULARY[name], shelf)
    return np.concatenate([np.array(tokenizer.encode(t).ids, dtype=np.int16) for t in book_texts(split, shelf)])


def tokenizer_folder(name: str, *, shelf: Shelf) -> Path:
    """A folder from which transformers loads the tokenizer of a text data set; made on first use."""
    folder = shelf.cache / f"{name}-tokenizer"
    if not folder.exists():
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        if name == "books-bytes":
            inner = Tokenizer(models.BPE({letter: byte for byte, letter in bytes_to_unicode().items()}, []))
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            inner.decoder = decoders.ByteLevel()
        else:
            inner = _tokenizer(VOCABULARY[name], shelf)
        shelf.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=shelf.cache) as half:
            PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(half)
            Path(half).chmod(0o755)
            try:
                Path(half).rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            Path(half).mkdir(exist_ok=True)
    return folder


def _tokenizer(vocabulary: int, shelf: Shelf) -> Any:
    """Byte-level BPE with `vocabulary` entries, trained on the first part of the train books."""
    try:
        from tokenizers import ByteLevelBPETokenizer, Tokenizer
    except ImportError as error:
        raise DataError("BPE tokens need the tokenizers package: pip install tokenizers") from error
    path = shelf.cache / f"books-bpe{vocabulary}.json"
    if not path.exists():
        trained = ByteLevelBPETokenizer()
        text = "\n\n".join(book_texts("train", shelf))[:_BPE_TRAINING_CHARACTERS]
        trained.train_from_iterator(text.split("\n\n"), vocab_size=vocabulary, show_progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            trained.save(str(Path(folder) / path.name))
            (Path(folder) / path.name).replace(path)
    return Tokenizer.from_file(str(path))
