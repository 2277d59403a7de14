"""A set of small CNNs on grey photographs, each trained in its own way: networks to judge by their weights.

    python benchmarks/small_cnns.py --out runs/accuracy/cnns.safetensors

Each run gives a network at every step of `KEPT`. Runs are trained a part at a time, and a part that is done is kept, so
the command can be killed at any point and started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grouped_training import CLASSES, CONVOLUTIONS, WIDTH, draw, small_cnn, train_together
from safetensors import SafetensorError
from torch import Tensor, nn

from dnge_compress.cli.grammar import positive
from dnge_compress.core.errors import CheckpointError, DataError, DngeError, first_line
from dnge_compress.core.tensors import read_tensors, write_tensors
from dnge_compress.graph.builder import GraphBuilder
from dnge_compress.graph.types import ModelGraph
from dnge_compress.zoo.data_root import DataRoot, Split
from dnge_compress.zoo.images import images
from dnge_compress.zoo.resumable import build_resumably

KEPT = (100, 300, 800, 2000)  # steps after which a network is kept
PART = 20  # runs that are trained together; they share an activation
ACTIVE = ("relu", "tanh")
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
SPLITS: tuple[Split, Split] = ("train", "held-out")
_JUDGED = 1000  # images at a time


@dataclass(frozen=True)
class CnnSet:
    """Trained networks, several of each run. `hyper` is what `grouped_training.draw` gives."""

    stack: dict[str, Tensor]  # "convolutions.0.weight" [N, 16, 1, 3, 3], …, "head.bias" [N, 10]
    run: Tensor  # int64 [N]
    step: Tensor  # int64 [N]
    is_relu: Tensor  # bool [N]; the others are tanh
    accuracy: Tensor  # [N], 0..1, on the held-out images
    hyper: dict[str, Tensor]  # [N] each
    about: dict[str, Any]  # runs, seed, kept, images

    def __len__(self) -> int:
        return len(self.run)

    def module(self, index: int) -> nn.Module:
        """One network, in evaluation mode."""
        found = small_cnn("relu" if self.is_relu[index] else "tanh")
        found.load_state_dict({name: values[index] for name, values in self.stack.items()})
        return found.eval()

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all. Raises CheckpointError."""
        tensors = {f"stack/{k}": v for k, v in self.stack.items()} | {f"hyper/{k}": v for k, v in self.hyper.items()}
        tensors |= {name: getattr(self, name) for name in ("run", "step", "is_relu", "accuracy")}
        write_tensors(path, tensors, {"about": json.dumps(self.about)})

    @classmethod
    def load(cls, path: Path | str) -> CnnSet:
        """Read a file that `save` wrote. Raises CheckpointError."""
        try:
            tensors, header = read_tensors(path)
            about = json.loads(header["about"])
            parts: dict[str, dict[str, Tensor]] = {"stack": {}, "hyper": {}, "": {}}
            for name, values in tensors.items():
                part, _, rest = name.rpartition("/")
                parts[part][rest] = values
            return cls(parts["stack"], hyper=parts["hyper"], about=about, **parts[""])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"'{path}' is no set of small CNNs ({first_line(e)}); make one with `python -m {__name__}`"
            ) from e


def graph() -> ModelGraph:
    """The dynamic graph of every network here; the spaces are "pixels", "channels.0" … "channels.2" and "classes"."""
    shapes = {name: tuple(values.shape) for name, values in small_cnn("relu").state_dict().items()}
    g = GraphBuilder("small_cnn", shapes)
    here = g.space("pixels", 1, "fixed")
    for i, name in enumerate(CONVOLUTIONS):
        there = g.space(f"channels.{i}", WIDTH, "channel", i)
        g.linear(name, here, there, "conv")
        here = there
    g.linear("head", here, g.space("classes", CLASSES, "fixed"))
    return g.finish()


def build_set(about: dict[str, Any], out: Path, *, data_root: DataRoot, jobs: int = 1) -> CnnSet:
    """Train the runs that `about` asks for, or go on where a killed command stopped; writes `out`.

    Raises CheckpointError if `out` holds another set, DataError on missing data.
    """

    def tasks() -> dict[str, tuple[Any, ...]]:
        return {f"{first:04d}": (about, first, data_root) for first in range(0, about["runs"], PART)}

    return build_resumably(about, out, tasks, _raise_part, load=CnnSet.load, join=_joined, jobs=jobs)


def about(runs: int, *, seed: int = 0, kept: Sequence[int] = KEPT, count: int = 50_000) -> dict[str, Any]:
    """What identifies a set; `count` images of each split are looked at, at most. Raises DataError."""
    if runs < 1 or count < 1 or list(kept) != sorted(set(kept)) or not kept or kept[0] < 1:
        raise DataError("a set needs at least one run and image, and ascending steps to keep, from 1")
    return {"runs": runs, "seed": seed, "kept": list(kept), "images": count}


def photographs(split: Split, count: int, *, data_root: DataRoot) -> tuple[Tensor, Tensor]:
    """The first grey images `[N, 1, 32, 32]`, of mean 0 and deviation 1 nearly, and their classes `[N]`."""
    found = images("cifar10", split, data_root=data_root)
    grey = np.einsum("nchw,c->nhw", found.pixels[:count], np.array(LUMINANCE, np.float32), dtype=np.float32)
    return (torch.from_numpy(grey)[:, None] / 255 - 0.48) / 0.24, found.labels[:count]


def accuracy_of(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Share of the images `[B, 1, 32, 32]` whose class is right, in float32."""
    with torch.inference_mode():
        answers = torch.cat([net(part).argmax(1) for part in x.split(_JUDGED)])
    return float((answers == labels).double().mean())


def _raise_part(file: Path, about: dict[str, Any], first: int, data_root: DataRoot) -> str:
    runs = range(first, min(first + PART, about["runs"]))
    generator = torch.Generator().manual_seed(about["seed"] * 1_000_003 + first)
    activation = ACTIVE[first // PART % len(ACTIVE)]
    hyper = draw(len(runs), generator)
    train, held_out = (photographs(split, about["images"], data_root=data_root) for split in SPLITS)
    made = []
    for step, stack in train_together(train, hyper, activation=activation, kept=about["kept"], generator=generator):
        same = torch.ones(len(runs))
        part = CnnSet(stack, torch.tensor(runs), same.long() * step, same.bool() & (activation == "relu"), same, hyper,
                      about)  # fmt: skip
        accuracy = torch.tensor([accuracy_of(part.module(i), *held_out) for i in range(len(runs))])
        made.append(replace(part, accuracy=accuracy))
    whole = _joined(made)
    whole.save(file)
    return f"accuracy {whole.accuracy.mean():.3f}"


def _joined(sets: Sequence[CnnSet]) -> CnnSet:
    def cat(name: str, key: str = "") -> Tensor:
        values = [getattr(s, name) for s in sets]
        return torch.cat([v[key] for v in values] if key else values)

    return CnnSet(
        {key: cat("stack", key) for key in sets[0].stack}, cat("run"), cat("step"), cat("is_relu"), cat("accuracy"),
        {key: cat("hyper", key) for key in sets[0].hyper}, sets[0].about,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a set; 0 when it is written, 2 on wrong data or folders."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/small_cnns.py", description="Train many small CNNs at once."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--runs", type=int, default=280, help=f"training runs; each gives {len(KEPT)} networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=positive, default=1, help="processes, one thread each")
    parser.add_argument("--data-folder", type=Path, help="folder of the data sets (else DNGE_DATA, ../shared/data)")
    options = parser.parse_args(arguments)
    try:
        data_root = DataRoot.find(options.data_folder)
        made = build_set(about(options.runs, seed=options.seed), options.out, data_root=data_root, jobs=options.jobs)
    except DngeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = {"networks": len(made), "accuracy": round(float(made.accuracy.mean()), 4), "file": str(options.out)}
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
