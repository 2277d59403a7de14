"""Run a model on inputs, whatever kind it is, and leave it as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.core.precision import widened_products
from dnge_compress.graph.derivation.pictures import GRID, PIXELS
from dnge_compress.recipes.job_schema import CAUSAL

Inputs: TypeAlias = dict[str, Tensor] | tuple[Tensor, ...] | Tensor
NO_TOKEN = -1


def call(model: nn.Module, inputs: Inputs) -> Tensor:
    """Run the model and return its main output: logits if there are any, else the hidden states `[…, features]`."""
    return main_output(outputs(model, inputs))


def outputs(model: nn.Module, inputs: Inputs) -> Any:
    """All that the model returns."""
    has_cache = getattr(getattr(model, "config", None), "use_cache", None) is not None
    without: dict[str, Any] = {"use_cache": False} if has_cache else {}
    if isinstance(inputs, Mapping):
        return model(**{k: v for k, v in inputs.items() if k != "labels"}, **without)
    return model(*inputs, **without) if isinstance(inputs, tuple) else model(inputs, **without)


def main_output(output: Any) -> Tensor:
    """The tensor that carries a model's answer."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        named = [output[n] for n in ("logits", "last_hidden_state") if output.get(n) is not None]
        floating = [v for v in output.values() if isinstance(v, Tensor) and v.is_floating_point() and v.dim() > 1]
        if named or floating:
            return (named or floating)[0]
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UnsupportedModelError(f"an output of type {type(output).__name__} holds neither logits nor hidden states")


def has_logits(model: nn.Module) -> bool:
    """Whether the main output may be class scores, so that damage can be counted in nats of KL divergence; of a plain
    module it may, and `divergence.are_scores` looks at the numbers."""
    is_plain = getattr(model, "config", None) is None
    return is_plain or re.search("For[A-Z]|LMHeadModel$", type(model).__name__) is not None


def writes_text(model: nn.Module) -> bool:
    """Whether the model is a causal language model by its class, so that text can be sampled from it."""
    return type(model).__name__.endswith(CAUSAL)


@contextmanager
def inference_mode_of(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with all parameters frozen; modes and flags are restored afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for p, _ in flags:
        p.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[]), _without_padding(model), widened_products(model):
            yield model
    finally:
        for m, mode in modes:
            m.training = mode
        for p, flag in flags:
            p.requires_grad_(flag)


@contextmanager
def _without_padding(model: nn.Module) -> Iterator[None]:
    """Classifiers on a decoder look for the last token that isn't padding, and refuse batches where no token is: let
    one that no text has stand for it."""
    config: Any = getattr(model, "config", None)
    if not type(model).__name__.endswith("ForSequenceClassification") or config.pad_token_id is not None:
        yield
        return
    config.pad_token_id = NO_TOKEN
    try:
        yield
    finally:
        config.pad_token_id = None


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives."""
    return next(model.parameters()).device


def to_device(inputs: Any, device: torch.device) -> Inputs:
    """The same inputs on `device`; those made under `torch.inference_mode` are copied, or no gradient could pass."""
    if isinstance(inputs, Mapping):
        return {k: _moved(v, device) for k, v in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_moved(t, device) for t in inputs)
    return _moved(inputs, device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.clone().to(device) if tensor.is_inference() else tensor.to(device)


def examples_in(inputs: Inputs) -> int:
    """How many examples a batch holds."""
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    return len(first[0]) if isinstance(first, tuple) else len(first)


def share_of(batches: Sequence[Inputs], share: float, least: int) -> list[Inputs]:
    """A `share` (0..1) of the examples, and at least so many: the first ones."""
    return first_examples(batches, max(least, round(sum(map(examples_in, batches)) * share)))


def first_examples(batches: Sequence[Inputs], rows: int) -> list[Inputs]:
    """The first `rows` examples of the batches."""
    taken: list[Inputs] = []
    for batch in batches:
        if rows <= 0:
            break
        taken.append(part_of(batch, 0, rows))
        rows -= examples_in(batch)
    return taken


def has_parts(batch: Inputs) -> bool:
    """Whether all that a batch holds can be told apart by examples."""
    return not (isinstance(batch, Mapping) and GRID in batch) or pictured_patches(batch) is not None


def part_of(batch: Inputs, first: int, rows: int) -> Inputs:
    """Some examples of a batch; a tensor that has none, such as position ids for all of them, goes with each part."""
    examples = examples_in(batch)

    def part(t: Tensor) -> Tensor:
        return t[first : first + rows] if t.dim() > 0 and len(t) == examples else t

    if isinstance(batch, Mapping):
        return _pictured_part(batch, first, rows) if GRID in batch else {k: part(t) for k, t in batch.items()}
    return tuple(part(t) for t in batch) if isinstance(batch, tuple) else part(batch)


def _pictured_part(batch: Mapping[str, Tensor], first: int, rows: int) -> dict[str, Tensor]:
    """Some examples of a batch whose pictures are a list of patches; all, where nothing tells whose they are."""
    patches = pictured_patches(dict(batch))
    if patches is None:
        return dict(batch)
    ends = [0, *patches.cumsum(0).tolist()]
    last = min(first + rows, len(patches))
    return {k: v[ends[first] : ends[last]] if k == PIXELS else v[first:last] for k, v in batch.items()}


def pictured_patches(batch: Inputs) -> Tensor | None:
    """How many patches the picture of every text has `[N]`; None where they aren't patches, or not one to a text."""
    grid = batch.get(GRID) if isinstance(batch, Mapping) else None
    return grid.prod(1) if grid is not None and len(grid) == examples_in(batch) else None
