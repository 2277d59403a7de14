"""An architecture that can be built under any config: as an outline without weights, or small and random."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from dnge_compress.core.errors import first_line
from dnge_compress.graph.builder import shapes_of
from dnge_compress.graph.layer_types import CONVS
from dnge_compress.graph.types import Shapes

GAIN = 1.2  # of random weights over 1/sqrt(fan-in)
LONGEST = 200  # characters of a reason
NOISE = 0.1  # on gains, biases and other constants
MATRICES = (nn.Linear, nn.Embedding, *CONVS, Conv1D)


class BuildError(Exception):
    """A config that no model can be built from."""


def reason_of(error: Exception) -> str:
    """What another package raised, in a line that a report can quote."""
    return f"{type(error).__name__}: {first_line(error)}"[:LONGEST]


@dataclass(frozen=True)
class Outline:
    """A model without weights: shapes of its tensors, and the whole numbers that its modules keep as attributes."""

    shapes: Shapes
    counts: Mapping[tuple[str, str], int]


@dataclass
class Architecture:
    """A model class under configs, given as dicts. Outlines are kept, since the same are asked for again."""

    model_class: type[Any]
    config_class: type[PreTrainedConfig]
    _outlines: dict[str, Outline | None] = field(default_factory=dict)

    def outline(self, config: Mapping[str, Any]) -> Outline | None:
        """The outline under a config, or None if it doesn't build."""
        known = repr(sorted(config.items(), key=lambda item: str(item[0])))
        if known not in self._outlines:
            try:
                with torch.device("meta"):
                    self._outlines[known] = outline_of(self._build(config))
            except BuildError:
                self._outlines[known] = None
        return self._outlines[known]

    def random(self, config: Mapping[str, Any]) -> nn.Module:
        """A model with random weights whose outputs are far from constant. Raises BuildError."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = self._build(config, weights=True)
            return roughened(model).eval()

    def empty(self, config: Mapping[str, Any]) -> nn.Module:
        """A model to load weights into. Raises BuildError."""
        with torch.random.fork_rng(devices=[]):
            return self._build(config, weights=True).eval()

    def _build(self, config: Mapping[str, Any], weights: bool = False) -> nn.Module:
        try:
            made = self.config_class.from_dict(copy.deepcopy(dict(config)))
            if self.model_class.__name__.endswith("ForSequenceClassification") and made.pad_token_id is None:
                made.pad_token_id = 0  # without one, they refuse batches
            for part in (made, *(v for v in vars(made).values() if isinstance(v, PreTrainedConfig))):
                part._experts_implementation = "eager"
                if hasattr(part, "output_router_logits"):
                    part.output_router_logits = False  # outputs whose shape counts experts can't be compared
            if weights:
                model: nn.Module = self.model_class(made).float()
                return model
            with no_init_weights():
                bare: nn.Module = self.model_class(made)
                return bare
        except Exception as e:  # whatever a config class or a model raises about a size is the answer "doesn't build"
            raise BuildError(reason_of(e)) from e


def outline_of(model: nn.Module) -> Outline:
    """The outline of a model that exists."""
    counts = {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) is int and not name.startswith("_")
    }
    return Outline(shapes_of(model), counts)


@torch.no_grad()
def roughened(model: nn.Module) -> nn.Module:
    """Random weights at full strength, noise on what is constant, running statistics as if used."""
    generator = torch.Generator().manual_seed(0)
    owners = dict(model.named_modules())
    done: set[int] = set()
    for name, p in model.named_parameters():
        if not p.is_floating_point() or id(p) in done:
            continue
        done.add(id(p))
        owner, leaf = owners[name.rpartition(".")[0]], name.rpartition(".")[2]
        noise = torch.randn(p.shape, generator=generator)
        is_matrix = p.dim() >= 2 and ((isinstance(owner, MATRICES) and leaf.startswith("weight")) or _looks_random(p))
        if is_matrix:
            p.copy_(noise * (GAIN / fan_in(owner, p) ** 0.5))
        elif float(p.std(unbiased=False)) < 1e-6 or p.dim() == 1:
            p.add_(NOISE * noise)
    for name, b in model.named_buffers():
        if name.endswith("bias") and b.is_floating_point() and not bool(b.any()):
            b.add_(NOISE * torch.randn(b.shape, generator=generator))  # corrections that a router learns
        elif name.endswith("running_mean"):
            b.add_(0.2 * torch.randn(b.shape, generator=generator))
        elif name.endswith("running_var"):
            b.mul_(0.6 + torch.rand(b.shape, generator=generator))
    return model


def _looks_random(p: Tensor) -> bool:
    spread = float(p.std(unbiased=False))
    return 0 < spread < 0.5 and abs(float(p.mean())) < 0.2 * spread + 1e-3


def fan_in(owner: nn.Module, p: Tensor) -> int:
    """How many products a sum of this weight's has, about."""
    if isinstance(owner, nn.Embedding):
        return 1
    if isinstance(owner, Conv1D):
        return int(p.shape[0])
    if isinstance(owner, (nn.Linear, *CONVS)):
        return max(1, p[0].numel())
    return int(p.shape[-1])
