"""One loop for everything that learns from sets of fitted networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dnge_compress.core.errors import DataError, refuse_below, refuse_rate
from dnge_compress.core.progress import Progress, silent
from dnge_compress.inr.encoders import InrReader
from dnge_compress.inr.sets import InrSet
from dnge_compress.inr.siren import Siren, take
from dnge_compress.inr.views import Moves, jitter_named

RISE = 0.1  # share of the steps, and two at least
CLIP = 1.0  # norm of a step's gradient
MEAN_OVER = 200  # steps, of the loss that is reported


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """AdamW with a warm-up and a cosine decay of the rate; `jitter` names the random moves of the pictures.

    The `backbone` of an `InrReader` learns at `backbone_lr_scale`, 0 … 1, of the rate, as pretrained layers under a
    new head do.
    """

    steps: int = 2000
    batch: int = 128
    learning_rate: float = 2e-3
    backbone_lr_scale: float = 0.1
    weight_decay: float = 0.02
    jitter: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        jitter_named(self.jitter)
        refuse_below(1, steps=self.steps, batch=self.batch)
        refuse_below(0, weight_decay=self.weight_decay, backbone_lr_scale=self.backbone_lr_scale)
        refuse_rate(self.learning_rate)
        if self.backbone_lr_scale > 1:
            raise DataError(f"backbone_lr_scale is {self.backbone_lr_scale}; it must be at most 1")


@dataclass(frozen=True, kw_only=True)
class InrBatch:
    """Some networks of a set, moved at random, and which they are."""

    stack: dict[str, Tensor]
    siren: Siren
    index: Tensor  # [B]
    moves: Moves


Loss = Callable[[InrBatch], Tensor]
B = TypeVar("B")


def train(
    module: nn.Module, inrs: InrSet, loss: Loss, settings: TrainSettings, progress: Progress = silent
) -> list[float]:
    """Train the parameters of `module` that ask for gradients; returns the loss of every step. Raises DataError.

    The same module, set and settings give the same result; torch's global random generator is left as it was. The
    module is ready to answer afterwards, whatever happened.
    """
    refuse_empty(inrs)
    return optimise(module, _batches(inrs, settings), loss, settings, progress)


def optimise(
    module: nn.Module, batches: Iterable[B], loss: Callable[[B], Tensor], settings: TrainSettings, progress: Progress
) -> list[float]:
    """`train` on batches of any kind, one a step."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # dropout
            return _optimised(module, batches, loss, settings, progress)
    finally:
        module.eval()


def shuffled(count: int, settings: TrainSettings, generator: torch.Generator) -> Iterator[Tensor]:
    """Which of `count` things each step looks at: all in a random order, and again in another."""
    order = torch.randperm(count, generator=generator)
    at = 0
    for _ in range(settings.steps):
        if at + settings.batch > len(order) and at:
            order, at = torch.randperm(count, generator=generator), 0
        yield order[at : at + settings.batch]
        at += settings.batch


def _optimised(
    module: nn.Module, batches: Iterable[B], loss: Callable[[B], Tensor], settings: TrainSettings, progress: Progress
) -> list[float]:
    learning = [p for p in module.parameters() if p.requires_grad]
    groups = _groups(module, settings)
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    steps = max(3, settings.steps)  # fewer have no room for a rise and a fall
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=steps, pct_start=max(RISE, 2 / steps)
    )
    losses = []
    module.train()
    for step, batch in enumerate(batches):
        value = loss(batch)
        if not value.isfinite():
            raise DataError(f"the loss is not a finite number after {step} steps; lower the learning rate")
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(learning, CLIP)
        optimiser.step()
        schedule.step()
        losses.append(float(value.detach()))
        recent = losses[-MEAN_OVER:]
        progress("learn", step + 1, settings.steps, f"loss {sum(recent) / len(recent):.4f}")
    return losses


def _groups(module: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """The parameters that ask for gradients, by their rates; groups without any are left out."""
    backbone = {id(p) for reader in module.modules() if isinstance(reader, InrReader) for p in reader.backbone()}
    rate = settings.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [p for p in module.parameters() if p.requires_grad and (id(p) in backbone) == slow], "lr": lr}
        for slow, lr in ((True, rate * settings.backbone_lr_scale), (False, rate))
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def share_right(answers: Callable[[dict[str, Tensor], Siren], Tensor], inrs: InrSet) -> float:
    """Share of the set's networks whose class has the largest of the logits `[N, classes]`. Raises DataError."""
    refuse_empty(inrs)
    right = 0
    for part in in_pieces(inrs):
        logits = answers(part.stack, part.siren)
        refuse_labels(part, logits.shape[1])
        right += int((logits.argmax(1) == part.labels).sum())
    return right / len(inrs)


def refuse_empty(inrs: InrSet) -> None:
    """Raise DataError if there is nothing to learn from or to judge."""
    if not len(inrs):
        raise DataError("the set of networks is empty; make one with `dnge inr`")


def refuse_labels(inrs: InrSet, classes: int) -> None:
    """Raise DataError if the set is empty, or its networks have no labels or others than 0 … `classes` − 1."""
    refuse_empty(inrs)
    least, largest = int(inrs.labels.min()), int(inrs.labels.max())
    if least < 0:
        raise DataError("networks of the set have no label; pass `labels` to `gather`")
    if largest >= classes:
        raise DataError(
            f"a network has label {largest}, and there are {classes} classes, from 0; give the model more `classes`"
        )


def in_pieces(inrs: InrSet, size: int = 256) -> Iterator[InrSet]:
    """The set in order, a piece at a time."""
    for first in range(0, len(inrs), size):
        yield inrs.select(slice(first, first + size))


def _batches(inrs: InrSet, settings: TrainSettings) -> Iterator[InrBatch]:
    generator = torch.Generator().manual_seed(settings.seed)
    for index in shuffled(len(inrs), settings, generator):
        moves = Moves.draw(jitter_named(settings.jitter), len(index), inrs.siren.widths[-1], generator)
        yield InrBatch(
            stack=moves.of_networks(take(inrs.stack, index), inrs.siren), siren=inrs.siren, index=index, moves=moves
        )
