"""Training encoders on examples: several at once, each on its own part of the zoo.

Small networks cost more in calls than in arithmetic, so encoders that differ in what they may learn from (leave one
family out, vision alone, …) pass every example together: one batched pass, and a mask over their losses.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from dnge_compress.core.errors import CheckpointError, DataError
from dnge_compress.core.files import atomic_file
from dnge_compress.core.progress import Progress, silent
from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FLOOR
from dnge_compress.encoder.model import Corrections
from dnge_compress.zoo.pretrain.targets import TrainingExample

HELD_OUT = 6  # every sixth run, by a hash of its name, is never trained on
MATRIX_WEIGHT = 0.1
FEATURE_NOISE = 0.1
LEARNING_RATE = 2e-3
KEEP_EVERY = 200  # steps


@dataclass(frozen=True)
class Fold:
    """A part of the zoo to learn from; what it leaves out is there to judge it by."""

    name: str
    learns: Callable[[TrainingExample], bool]


def is_held_out(name: str) -> bool:
    """Whether a network is kept for judging, by a hash of its run's name."""
    return zlib.crc32(name.partition("@")[0].partition("+")[0].encode()) % HELD_OUT == 0


EVERYTHING = Fold("all", lambda example: not is_held_out(example.name))


def fit(
    examples: Sequence[TrainingExample],
    folds: Sequence[Fold],
    *,
    steps: int,
    seed: int,
    make: Callable[[], DNGEncoder] = DNGEncoder,
    state: Path | None = None,
    progress: Progress = silent,
) -> dict[str, DNGEncoder]:
    """One encoder per fold, as `make` makes them, after `steps` examples; from the file `state` a killed run goes on.

    All folds pass every example, but learn from their own alone: a fold of half the zoo learns half as often.
    Raises DataError if a fold has nothing to learn from, CheckpointError if `state` belongs to another training.
    """
    for fold in folds:
        if not any(fold.learns(x) for x in examples):
            raise DataError(f"no network of the zoo is left to learn from for '{fold.name}'; make the zoo larger")
    torch.manual_seed(seed)
    encoders = [make().train() for _ in folds]
    shapes = [(name, list(p.shape)) for name, p in encoders[0].named_parameters()]
    text = json.dumps([seed, steps, shapes, [f.name for f in folds], [x.name for x in examples]])
    params, _ = stack_module_state(encoders)
    optimiser = torch.optim.AdamW(params.values(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps, pct_start=0.1)
    training = _Training(params, optimiser, schedule, hashlib.sha256(text.encode()).hexdigest())
    mask = {x.name: torch.tensor([float(fold.learns(x)) for fold in folds]) for x in examples}
    total, seen = torch.zeros(len(folds)), torch.zeros(len(folds))
    for step in range(training.resume(state), steps):
        example = _example_at(examples, step, seed)
        torch.manual_seed(seed * 1_000_003 + step)
        losses = batched_losses(encoders[0], params, example, FEATURE_NOISE)
        (losses * mask[example.name]).sum().backward()
        _clip(params, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        total += losses.detach() * mask[example.name]
        seen += mask[example.name]
        if (step + 1) % KEEP_EVERY == 0:
            means = " ".join(f"{v:.3f}" for v in (total / seen.clamp_min(1)).tolist())
            progress("train", step + 1, steps, f"losses {means}")
            total, seen = torch.zeros(len(folds)), torch.zeros(len(folds))
            training.keep(state, step + 1)
    for i, encoder in enumerate(encoders):
        encoder.load_state_dict({name: value[i].detach() for name, value in params.items()})
    return {fold.name: encoder.eval() for fold, encoder in zip(folds, encoders, strict=True)}


@dataclass(frozen=True)
class _Training:
    """All that changes while encoders learn, and what identifies the training."""

    params: Mapping[str, Tensor]
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    identity: str

    def resume(self, state: Path | None) -> int:
        """Go back to where a killed run was; the steps it had done."""
        if state is None or not state.is_file():
            return 0
        saved = torch.load(state, weights_only=True)
        if saved["identity"] != self.identity:
            raise CheckpointError(f"'{state}' belongs to another training; delete it to start this one")
        with torch.no_grad():
            for name, value in saved["params"].items():
                self.params[name].copy_(value)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.schedule.load_state_dict(saved["schedule"])
        return int(saved["step"])

    def keep(self, state: Path | None, step: int) -> None:
        if state is None:
            return
        parts = {"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict()}
        params = {name: value.detach() for name, value in self.params.items()}
        with atomic_file(state) as file:
            torch.save({"step": step, "identity": self.identity, "params": params, **parts}, file)


def batched_losses(base: nn.Module, params: Mapping[str, Tensor], example: TrainingExample, noise: float) -> Tensor:
    """The loss of every encoder on one example `[encoders]`."""
    features = {k: v + noise * torch.randn_like(v) for k, v in example.features.items()}
    inputs = (example.graph, example.weights, features, example.layer_logs)
    return vmap(lambda own: example_loss(functional_call(base, own, inputs), example))(dict(params))


def example_loss(found: Corrections, example: TrainingExample) -> Tensor:
    """Huber loss of the log costs of units and layers, and of the gradients of matrices."""
    losses = []
    for name, correction in {**found.spaces, **found.layers}.items():
        counted = example.counted[name]
        error = (example.obs_costs[name].clamp_min(FLOOR).log() + correction - example.targets[name])[counted]
        if len(error):
            losses.append(nnf.smooth_l1_loss(error, torch.zeros_like(error), beta=0.5))
    value = torch.stack(losses).mean()
    known = [p for p in found.matrices if p in example.matrices]
    if known:
        predicted = torch.stack([found.matrices[p] for p in known])
        wanted = torch.stack([example.matrices[p] for p in known])
        value = value + MATRIX_WEIGHT * nnf.smooth_l1_loss(predicted - predicted.mean(), wanted)
    return value


def _example_at(examples: Sequence[TrainingExample], step: int, seed: int) -> TrainingExample:
    """Every example once per round, in an order that depends on the seed and the round alone."""
    turn, place = divmod(step, len(examples))
    order = random.Random(f"{seed}/{turn}").sample(range(len(examples)), len(examples))
    return examples[order[place]]


def _clip(params: Mapping[str, Tensor], limit: float) -> None:
    """Bound the gradient's norm of each encoder by itself."""
    squares = sum((p.grad.flatten(1).square().sum(1) for p in params.values() if p.grad is not None), torch.zeros(()))
    factor = (limit / squares.sqrt().clamp_min(1e-12)).clamp(max=1)
    for p in params.values():
        if p.grad is not None:
            p.grad.mul_(factor.view(-1, *[1] * (p.dim() - 1)))
