"""The shared image data sets as tensors: handwritten digits, and photographs (CIFAR-10, a JPEG copy)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from dnge_compress.core.errors import DataError, UnknownNameError
from dnge_compress.zoo.data_root import DataRoot, Split, cached, table

IMAGES = ("mnist", "cifar10")
_STORED: dict[Split, str] = {"train": "train", "held-out": "test"}  # what the files call our splits


@dataclass(frozen=True, kw_only=True)
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


def images(name: str, split: Split, *, data_root: DataRoot) -> Images:
    """Load the images of `name` ("mnist" or "cifar10", the JPEG copy).

    Raises: DataError if the file, pyarrow or pillow is missing, or the file is damaged; UnknownNameError.
    """
    if split not in _STORED:
        raise UnknownNameError("split", split, _STORED)
    if name == "mnist":
        pixels, labels = _mnist(data_root.file("mnist.npz"), _STORED[split])
        return Images(pixels=pixels, labels=torch.from_numpy(labels).long(), mean=(0.1307,), deviation=(0.3081,))
    if name == "cifar10":
        pixels = cached(data_root.cache / f"cifar10-{split}.npy", lambda: _decode_cifar10(split, data_root))
        # Within a split the rows go round the ten classes, see the data sets' README.
        labels = cached(data_root.cache / f"cifar10-{split}-labels.npy", lambda: _cifar10_labels(split, data_root))
        return Images(
            pixels=pixels,
            labels=torch.from_numpy(labels.copy()).long(),
            mean=(0.4913, 0.4821, 0.4465),
            deviation=(0.2452, 0.2428, 0.2606),
        )
    raise UnknownNameError("image data set", name, IMAGES)


def _mnist(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            pixels, labels = file[f"x_{part}"], file[f"y_{part}"]
            if pixels.dtype != np.uint8 or pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1]:
                raise ValueError(f"images {pixels.shape}, labels {labels.shape}")
            return pixels[:, None], labels
    except (OSError, KeyError, ValueError, TypeError, BadZipFile) as e:
        raise DataError(f"'{path}' is no MNIST as Keras ships it, or damaged; copy it there again") from e


def _cifar10(split: Split, data_root: DataRoot) -> Any:
    rows = table("cifar10.parquet", data_root, ("split", "jpeg", "label"))
    return rows.filter(np.array([s == _STORED[split] for s in rows["split"].to_pylist()]))


def _decode_cifar10(split: Split, data_root: DataRoot) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("decoding CIFAR-10 needs pillow: pip install 'dnge-compress[pretrain]'") from error
    files = _cifar10(split, data_root)["jpeg"].to_pylist()
    try:
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])  # [N, 32, 32, 3]
    except (OSError, TypeError, ValueError) as e:
        raise DataError(
            f"'{data_root.file('cifar10.parquet')}' holds an image that can't be read; copy it again"
        ) from e
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _cifar10_labels(split: Split, data_root: DataRoot) -> np.ndarray:
    return _cifar10(split, data_root)["label"].to_numpy().astype(np.uint8)
