"""Surgery on tokens: their rows leave embedding, head and biases, and every id in configs and modules moves up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dnge_compress.core.errors import ExactnessError, first_line
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut, ModelGraph
from dnge_compress.graph.vocabulary import SPACE, rows_of
from dnge_compress.signals.inference import Inputs, call, inference_mode_of
from dnge_compress.surgery.cut import cut, update_sizes
from dnge_compress.surgery.exactness import TOLERANCES, relative_difference
from dnge_compress.surgery.token_ids import renumber, renumbered_inputs


def new_ids(keep: tuple[int, ...]) -> Mapping[int, int]:
    """The new id of every token that stays; their order stays as well."""
    return {old: new for new, old in enumerate(keep)}


def cut_vocabulary(model: Any, graph: ModelGraph, keep: tuple[int, ...]) -> None:
    """Leave the tokens `keep` in `model`, in place; `graph` is its `vocabulary_graph`. What is tied stays tied."""
    ties = _ties(model)
    renumber(model, new_ids(keep))
    cut(model, AppliedCuts(graph, (Cut(SPACE, keep),)))
    for name, source in ties.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(source))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            update_sizes(module)


def check_tokens(small: Any, dense: Any, keep: tuple[int, ...], inputs: Inputs) -> None:
    """Prove that the smaller model answers as the whole one on `inputs`, which hold kept tokens, by their old ids.

    Logits of tokens are compared where the tokens stay. Raises ExactnessError.
    """
    with torch.no_grad(), inference_mode_of(dense), inference_mode_of(small):
        expected = call(dense, inputs)
        try:
            actual = call(small, renumbered_inputs(inputs, new_ids(keep)))
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ExactnessError(_apart(dense, f"it can't be run without some ({first_line(e)})")) from e
    if expected.shape[-1] == rows_of(dense):
        expected = expected[..., list(keep)]
    difference = relative_difference(actual, expected)
    if not difference <= TOLERANCES[next(dense.parameters()).dtype]:
        raise ExactnessError(_apart(dense, f"without some its outputs differ by {difference:.2g}"))


def _apart(model: nn.Module, how: str) -> str:
    return f"{type(model).__name__} uses its token ids in a way that isn't known here: {how}; nothing was changed"


def _ties(model: nn.Module) -> dict[str, str]:
    """Every further name of a parameter, and its first."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    found = [(name, first.setdefault(id(p), name)) for name, p in named]
    return {name: source for name, source in found if name != source}
