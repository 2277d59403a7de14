"""Training many small CNNs at once, as one grouped convolution; each run has its own way, its own images and order.

The architecture is that of the Small CNN Zoo (Unterthiner et al., arXiv 2002.11448): three 3x3 convolutions of stride 2
and width 16, the mean over positions, ten classes.

Letters: R runs, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dnge_compress.core.precision import has_bfloat16
from dnge_compress.zoo.networks import ACTIVATIONS, CNN

SIDE, WIDTH, DEPTH, CLASSES = 32, 16, 3, 10
BATCH = 64
CONVOLUTIONS = tuple(f"convolutions.{2 * i}" for i in range(DEPTH))
HYPER = ("adam", "learning_rate", "weight_decay", "dropout", "init", "share")
MOMENTUM, BETA, LARGEST_GRADIENT = 0.9, 0.99, 1.0


def small_cnn(activation: str) -> CNN:
    """One network with initial weights of torch's own, in training mode; `activation` is "relu" or "tanh"."""
    return CNN((1, SIDE), (WIDTH,) * DEPTH, classes=CLASSES, activation=activation, batch_norm=False,
               layout=("stride", "average"))  # fmt: skip


def draw(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Hyper-parameters `[R]` of some runs, by the names of `HYPER`.

    `adam` is 1 or 0 (SGD with momentum, learning rates thirty times Adam's), `init` a factor on He's initial standard
    deviation, `share` that of the training images.
    """
    u = dict(zip(HYPER, torch.rand(len(HYPER), count, generator=generator), strict=True))
    adam = (u["adam"] < 0.5).float()
    return {
        "adam": adam,
        "learning_rate": _log_uniform(u["learning_rate"], 5e-4, 2e-2) * (30 - 29 * adam),
        "weight_decay": _log_uniform(u["weight_decay"], 1e-6, 1e-2),
        "dropout": 0.5 * u["dropout"],
        "init": _log_uniform(u["init"], 0.5, 2.0),
        "share": torch.tensor([0.1, 0.25, 0.5, 1.0])[(4 * u["share"]).long()],
    }


def train_together(
    shown: tuple[Tensor, Tensor],
    hyper: dict[str, Tensor],
    *,
    activation: str,
    kept: Sequence[int],
    generator: torch.Generator,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Stacked weights `[R, …]` of all runs after each of the ascending steps `kept`; products run in
    bfloat16 where the CPU has it.

    `shown` are images `[N, 1, 32, 32]` and their classes `[N]`, `hyper` what `draw` gave.
    """
    x, labels = shown[0].to(_fast()).flatten(1), shown[1]
    runs = len(hyper["init"])
    own = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(runs)])  # [R, N]
    seen = (hyper["share"] * len(x)).ceil().long()
    stack = {name: t.requires_grad_() for name, t in _initial(hyper["init"], generator).items()}
    rule = _Rule(stack, hyper)
    for step in range(1, kept[-1] + 1):
        position = (torch.rand(BATCH, runs, generator=generator) * seen).long()
        chosen = own.gather(1, position.T).T  # [B, R]
        batch = x[chosen.flatten()].view(BATCH, runs, SIDE, SIDE)
        chance = hyper["dropout"][:, None, None]
        stays = (torch.rand(runs, BATCH, WIDTH, generator=generator) >= chance) / (1 - chance)
        logits = _answers(stack, batch, activation, stays)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[chosen.T].flatten(), reduction="sum") / BATCH
        rule.step(torch.autograd.grad(loss, list(stack.values())))
        if step in kept:
            yield step, {name: t.detach().clone() for name, t in stack.items()}


def _fast() -> torch.dtype:
    return torch.bfloat16 if has_bfloat16() else torch.float32


def _log_uniform(u: Tensor, low: float, high: float) -> Tensor:
    return low * (high / low) ** u


def _answers(stack: dict[str, Tensor], batch: Tensor, activation: str, stays: Tensor) -> Tensor:
    """Logits `[R, B, 10]`, each run on its own images `[B, R, 32, 32]`; `stays` is dropout's factor."""
    runs = batch.shape[1]
    here = batch.contiguous(memory_format=torch.channels_last)
    act = ACTIVATIONS[activation]()
    for name in CONVOLUTIONS:
        weight, bias = (stack[f"{name}.{leaf}"].flatten(0, 1).to(_fast()) for leaf in ("weight", "bias"))
        here = act(nn.functional.conv2d(here, weight, bias, stride=2, padding=1, groups=runs))
    pooled = here.float().mean((2, 3)).view(len(batch), runs, WIDTH).transpose(0, 1) * stays
    return torch.baddbmm(stack["head.bias"][:, None], pooled, stack["head.weight"].mT)


class _Rule:
    """Adam or SGD with momentum, as each run has it; gradients of one run are at most of norm one."""

    def __init__(self, stack: dict[str, Tensor], hyper: dict[str, Tensor]) -> None:
        self.stack, self.hyper, self.steps = list(stack.values()), hyper, 0
        self.first = [torch.zeros_like(t) for t in self.stack]
        self.second = [torch.zeros_like(t) for t in self.stack]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        clipped = (LARGEST_GRADIENT / norm.clamp_min(1e-12)).clamp_max(1.0)
        for t, gradient, m, v in zip(self.stack, gradients, self.first, self.second, strict=True):
            shape = (-1, *[1] * (t.dim() - 1))
            adam, rate, decay = (self.hyper[n].view(shape) for n in ("adam", "learning_rate", "weight_decay"))
            g = gradient * clipped.view(shape) + decay * t
            m.mul_(MOMENTUM).add_((1 - MOMENTUM) * g)
            v.mul_(BETA).add_((1 - BETA) * g.square())
            mean, spread = m / (1 - MOMENTUM**self.steps), (v / (1 - BETA**self.steps)).sqrt() + 1e-8
            t.sub_(rate * torch.where(adam > 0, mean / spread, m))


def _initial(scale: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    stack = {}
    for name, values in small_cnn("relu").state_dict().items():
        shape = (len(scale), *values.shape)
        if name.endswith("bias"):
            stack[name] = torch.zeros(shape)
        else:
            deviation = scale * (2 / values[0].numel()) ** 0.5
            stack[name] = torch.randn(shape, generator=generator) * deviation.view(-1, *[1] * values.dim())
    return stack
