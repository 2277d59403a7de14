"""Whether the weights of a folder can be what its config asks for, told before memory is taken for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig

from dnge_compress.core.deadline import deadline
from dnge_compress.core.errors import CheckpointError, DngeError
from dnge_compress.core.wording import count, several

MOST_TIMES = 4  # as many parameters as there are values: ties count twice, and a little may be missing
SPARE = 1_000_000  # parameters that nobody minds
SECONDS = 30.0  # that a model may take to be built without values


def refuse_implausible(folder: Path, config: Any, cls: Any, files: Sequence[Path], times: int = 1) -> None:
    """Raise CheckpointError for a config that asks for many times what the weights in `files` hold, or for more layers
    than they have tensors. A base that was pruned since may be so many `times` as large."""
    shapes = [shape for file in files for shape in _shapes(file)]
    for part in _parts(config):
        layers = getattr(part, "num_hidden_layers", None)
        if isinstance(layers, int) and layers > times * len(shapes):
            raise CheckpointError(
                f"the config of '{folder}' asks for {layers:,} layers, but its weights are "
                f"{several(len(shapes), 'tensor')}; correct it, or fetch both again"
            )
    held, asked = sum(map(math.prod, shapes)), _asked(folder, config, cls)
    if asked > times * MOST_TIMES * held + SPARE:
        raise CheckpointError(
            f"the config of '{folder}' asks for {count(asked)} parameters, but its weights hold {count(held)}; "
            "correct it, or fetch both again"
        )


def _asked(folder: Path, config: Any, cls: Any) -> int:
    """How many parameters a model of the config has; 0 where it can't be built, which is told by who builds it next."""
    over = CheckpointError(
        f"the config of '{folder}' describes a model that takes over {SECONDS:g} s to build; correct it"
    )
    build = getattr(cls, "_from_config", None) or cls.from_config
    try:
        with deadline(SECONDS, over), torch.device("meta"), torch.random.fork_rng(devices=[]):
            return sum(parameter.numel() for parameter in build(config).parameters())
    except DngeError:
        raise
    except Exception:  # of a dozen kinds
        return 0


def _shapes(file: Path) -> Iterator[tuple[int, ...]]:
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            yield tuple(tensors.get_slice(name).get_shape())


def _parts(config: Any) -> Iterator[Any]:
    """A config and those in it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)
