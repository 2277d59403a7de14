"""Sets of fitted networks: one safetensors file with weights, labels, image numbers and PSNR.

    dnge inr mnist -o mnist.safetensors --jobs 2

A set is made in parts, each kept when it is done, so the command can be killed at any point and started again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dnge_compress.core.errors import CheckpointError, DataError, UnsupportedModelError, WeightError, first_line
from dnge_compress.core.files import refuse_unreadable
from dnge_compress.core.progress import Progress, silent
from dnge_compress.core.tensors import read_tensors, write_tensors
from dnge_compress.inr.chain import layers_of, read_chain, widths_of
from dnge_compress.inr.fitting import FitSettings, fit
from dnge_compress.inr.siren import Siren, take
from dnge_compress.zoo.checkpoints import unwrapped
from dnge_compress.zoo.data_root import DataRoot, Split
from dnge_compress.zoo.images import Images, images
from dnge_compress.zoo.resumable import build_resumably

PART = 250  # networks that are fitted together
STEPS = {"mnist": 300, "cifar10": 400}
HIDDEN = (32, 32)


@dataclass(frozen=True, kw_only=True)
class InrSet:
    """Fitted networks of one data set, and what each of them shows."""

    siren: Siren
    stack: dict[str, Tensor]  # "0.weight" [N, 32, 2], …
    labels: Tensor  # int64 [N]
    image: Tensor  # int64 [N], number of the image within its split
    psnr: Tensor  # [N], decibels; NaN where nobody measured it
    about: dict[str, Any]  # how they were made (`about`); nothing of gathered ones

    def __post_init__(self) -> None:
        count = len(self.labels)
        wanted = {name: (count, *shape) for name, shape in self.siren.shapes().items()}
        wanted |= dict.fromkeys(("labels", "image", "psnr"), (count,))
        given = self.stack | {"labels": self.labels, "image": self.image, "psnr": self.psnr}
        for name in sorted(wanted.keys() | given.keys()):
            shape = tuple(given[name].shape) if name in given else None
            if shape != wanted.get(name):
                raise DataError(
                    f"'{name}' of {count} networks {self.siren.widths} has shape {shape}; it must be {wanted.get(name)}"
                )
        dtypes = dict.fromkeys(self.stack, torch.float32) | {"labels": torch.int64, "image": torch.int64}
        for name, dtype in dtypes.items():
            if given[name].dtype != dtype:
                raise DataError(f"'{name}' is {given[name].dtype}; it must be {dtype}")
        for name, values in self.stack.items():
            if not values.isfinite().all():
                raise WeightError(f"'{name}' holds values that are not finite numbers; fit those networks again")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor | slice) -> InrSet:
        """The networks at `index`."""
        return replace(
            self,
            stack=take(self.stack, index),
            labels=self.labels[index],
            image=self.image[index],
            psnr=self.psnr[index],
        )

    def save(self, path: Path | str) -> None:
        """Write one file, whole or not at all. Raises CheckpointError."""
        header = {"siren": json.dumps(asdict(self.siren)), "about": json.dumps(self.about)}
        tensors = self.stack | {"labels": self.labels, "image": self.image, "psnr": self.psnr}
        write_tensors(Path(path), tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> InrSet:
        """Read a file that `save` wrote. Raises CheckpointError."""
        refuse_unreadable(Path(path))
        try:
            tensors, header = read_tensors(path)
            shape = json.loads(header["siren"])
            siren = Siren(tuple(shape["widths"]), shape["omega"])
            labels, image, quality = (tensors.pop(name) for name in ("labels", "image", "psnr"))
            about = json.loads(header["about"])
            return cls(siren=siren, stack=tensors, labels=labels, image=image, psnr=quality, about=about)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as e:
            raise CheckpointError(
                f"'{path}' is no set of fitted networks ({first_line(e)}); make one with `dnge inr`"
            ) from e


def gather(
    networks: Iterable[Any], labels: Sequence[int] | Tensor = (), *, omega: float = 30.0, layers: Sequence[str] = ()
) -> InrSet:
    """A set of networks that were fitted elsewhere, from their state dicts, or checkpoints that hold one each: chains
    of linear layers with sines, in float32, of points (row, column) at the pixels' centres in −1 … 1 and colours
    −1 … 1. Without labels, all are −1.

    Layers are in the order of `layers`, their names; without it as `read_chain` says: a state dict keeps its own.
    Raises DataError if there are none or their widths differ, UnsupportedModelError or WeightError on other networks.
    """
    if isinstance(networks, Mapping):
        raise DataError("networks is one state dict; give a list of them")
    dicts = [_state_dict(number, weights) for number, weights in enumerate(networks)]
    chains = [_read(number, weights, layers) for number, weights in enumerate(dicts)]
    orders = [layers_of(weights, layers) for weights in dicts]
    for number, order in enumerate(orders):
        if sorted(order) == sorted(orders[0]) and order != orders[0]:
            raise UnsupportedModelError(
                f"network {number} has layers {', '.join(order)}, the first {', '.join(orders[0])}; tell the order by "
                "layers="
            )
    if not chains or len(labels) not in (0, len(chains)):
        raise DataError(
            f"there are {len(chains)} networks and {len(labels)} labels; give at least one, as many of both"
        )
    widths = widths_of(chains[0])
    for number, found in enumerate(chains):
        if widths_of(found) != widths:
            raise DataError(
                f"network {number} has widths {widths_of(found)}, the first {widths}; gather each shape alone"
            )
    stack = {name: torch.stack([found[name] for found in chains]).float() for name in chains[0]}
    if any(values.dim() != (3 if name.endswith("weight") else 2) for name, values in stack.items()):
        raise DataError("every network must be one chain of matrices [out, in]; stacked ones go into `InrSet`")
    count = len(chains)
    known = torch.as_tensor(labels if len(labels) else [-1] * count)
    if known.is_floating_point() or (len(labels) and known.min() < 0):
        raise DataError("labels must be whole numbers, from 0")
    return InrSet(
        siren=Siren(widths, omega),
        stack=stack,
        labels=known.long(),
        image=torch.arange(count),
        psnr=torch.full((count,), torch.nan),
        about={},
    )


def _state_dict(number: int, given: Any) -> Mapping[str, Tensor]:
    """A state dict, out of the checkpoint that holds it. Raises DataError for anything else."""
    if isinstance(given, nn.Module):
        raise DataError(f"network {number} is a module; give its state_dict()")
    weights = unwrapped(given) if isinstance(given, Mapping) else given
    if not isinstance(weights, Mapping):
        raise DataError(f"network {number} is a {type(given).__name__}, not a state dict; give one")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            found = f"a {type(value).__name__}"
        elif value.is_meta:
            found = "a tensor without values"
        elif value.layout != torch.strided:
            found = "a sparse tensor"
        else:
            continue
        raise DataError(f"network {number}: '{name}' is {found}; give dense tensors (torch.from_numpy makes some)")
    return weights


def _read(number: int, weights: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    try:
        return read_chain(weights, layers)
    except (UnsupportedModelError, WeightError) as e:
        raise type(e)(f"network {number}: {e}") from e


def build_set(
    about: dict[str, Any], out: Path, *, data_root: DataRoot, jobs: int = 1, progress: Progress = silent
) -> InrSet:
    """Fit networks to every image that `about` asks for, or go on where a killed run stopped; writes `out`.

    Raises CheckpointError if `out` holds another set, DataError on missing data.
    """

    def tasks() -> dict[str, tuple[Any, ...]]:
        count = min(about["count"], len(images(about["data"], about["split"], data_root=data_root).labels))
        return {
            f"{fits:02d}-{first:06d}": (about, fits, first, min(first + PART, count), data_root)
            for fits in range(about["fits"])
            for first in range(0, count, PART)
        }

    return build_resumably(about, out, tasks, _fit_part, load=InrSet.load, join=_joined, jobs=jobs, progress=progress)


def usual(data: str) -> FitSettings:
    """How networks of a data set's images are fitted where nothing else is asked for."""
    return FitSettings(steps=STEPS.get(data, FitSettings().steps))


def about(
    data: str,
    split: Split,
    *,
    count: int,
    fits: int = 1,
    hidden: Sequence[int] = HIDDEN,
    seed: int = 0,
    settings: FitSettings | None = None,
) -> dict[str, Any]:
    """What identifies a set; without settings, with the data set's usual ones. Raises DataError."""
    if count < 1 or fits < 1:
        raise DataError("a set needs at least one image and one fit of each")
    if not hidden or min(hidden) < 1:
        raise DataError(f"hidden widths are {list(hidden)}; give at least one, each above 0")
    return {
        "data": data,
        "split": split,
        "count": count,
        "fits": fits,
        "hidden": list(hidden),
        "seed": seed,
        "fit": asdict(settings or usual(data)),
    }


def pictures(found: Images, index: Tensor | slice) -> Tensor:
    """Images in −1 … 1, float32 `[N, C, S, S]`: what the networks were fitted to."""
    where = index.numpy() if isinstance(index, Tensor) else index
    return torch.from_numpy(np.array(found.pixels[where])).float() / 127.5 - 1


def _joined(made: Sequence[InrSet]) -> InrSet:
    stack = {name: torch.cat([m.stack[name] for m in made]) for name in made[0].stack}
    labels, image, quality = (torch.cat([getattr(m, name) for m in made]) for name in ("labels", "image", "psnr"))
    return InrSet(siren=made[0].siren, stack=stack, labels=labels, image=image, psnr=quality, about=made[0].about)


def _fit_part(file: Path, about: dict[str, Any], fits: int, first: int, last: int, data_root: DataRoot) -> str:
    found = images(about["data"], about["split"], data_root=data_root)
    x = pictures(found, slice(first, last))
    siren = Siren((2, *about["hidden"], x.shape[1]))
    seed = hash((about["seed"], about["split"] == "train", fits, first)) % 2**31
    stack, quality = fit(x, siren, FitSettings(**about["fit"]), seed)
    part = InrSet(
        siren=siren,
        stack=stack,
        labels=found.labels[first:last],
        image=torch.arange(first, last),
        psnr=quality,
        about=about,
    )
    part.save(file)
    return f"{quality.mean():.1f} dB"
