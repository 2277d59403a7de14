"""The dense model with units masked: what surgery must equal, without touching a weight.

Zeroing the columns through which a unit is read removes it exactly; skipping a block removes a layer. Weights are
swapped for the length of a call (torch.func.functional_call), never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dnge_compress.core.paging import Shelf
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.products import MaskedRouters
from dnge_compress.graph.types import ModelGraph, Slot


class MaskedModel(nn.Module):
    """A view of `model` under cuts: call it as the model itself. Nothing of the model is changed.

    `repaired` may replace weights and biases of consumers, with removed columns zero.
    """

    def __init__(self, model: nn.Module, applied: AppliedCuts, repaired: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self._dense = [model]  # in a list, so that the parameters stay the model's own
        self._skipped = applied.dropped_modules
        self._routers: list[tuple[Tensor, Tensor]] = []
        overrides: dict[str, Tensor] = {}
        given, shelf = dict(repaired or {}), Shelf("masked weights")
        masks: dict[str, list[tuple[Slot, Tensor]]] = {}
        weights = model.state_dict(keep_vars=True)
        for cut in applied.cuts:
            gone = cut.gone(applied.graph.space(cut.space).units)
            if applied.graph.space(cut.space).kind == "expert":
                self._mask_experts(applied.graph, cut.space, weights, gone, overrides)
            for slot in applied.graph.consumers(cut.space):
                if slot.param not in given:
                    masks.setdefault(slot.param, []).append((slot, gone))
        for param, removed in masks.items():
            masked = overrides.pop(param, weights[param].detach()).clone()
            for slot, gone in removed:
                zero_(masked, slot, gone)
            overrides[param] = shelf.keep(masked)
        self._overrides = overrides | given
        self.config = getattr(model, "config", None)

    def _mask_experts(
        self, graph: ModelGraph, space: str, weights: Mapping[str, Tensor], gone: Tensor, overrides: dict[str, Tensor]
    ) -> None:
        """The smallest logits for experts that go, and the smallest corrections where a router adds some."""
        for slot in graph.slots_of(space):
            weight = weights[slot.param]
            if graph.step_of(slot.param).op == "router" and weight.dim() == 2:
                self._routers.append((weight, slot.rows(gone)))
            elif weight.numel() == weight.shape[slot.axis] and weight.is_floating_point():
                known = overrides.get(slot.param, weight.detach())
                overrides[slot.param] = lowest(known, slot.axis, slot.rows(gone))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The masked model's output."""
        model = self._dense[0]
        mask = MaskedRouters(self._routers) if self._routers else nullcontext()
        with skipped(model, self._skipped), mask:
            return functional_call(model, self._overrides, args, kwargs)


@contextmanager
def skipped(model: nn.Module, modules: Iterable[str]) -> Iterator[None]:
    """Blocks pass their input on, for the length of the context."""
    with ExitStack() as hooks:
        for m in modules:
            block = model.get_submodule(m)
            # Before the hooks by which transformers collects hidden states, of which some models read one.
            hooks.enter_context(block.register_forward_hook(_pass_on, prepend=True, with_kwargs=True))
        yield


def zeroed(weight: Tensor, slot: Slot, units: Tensor) -> Tensor:
    """A copy of `weight` in which the rows of `units` are zero along the slot's axis."""
    weight = weight.clone()
    zero_(weight, slot, units)
    return weight


def zero_(weight: Tensor, slot: Slot, units: Tensor) -> None:
    """Set the rows of `units` along the slot's axis to zero, in place."""
    rows = slot.rows(units).to(weight.device)
    if slot.part is None:
        weight.index_fill_(slot.axis, rows, 0)
    else:
        weight[slot.part].index_fill_(slot.axis - 1, rows, 0)


def lowest(weight: Tensor, axis: int, rows: Tensor) -> Tensor:
    """A copy in which some rows are so low that no choice falls on them."""
    return weight.index_fill(axis, rows.to(weight.device), torch.finfo(weight.dtype).min / 2)


def _pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    return with_hidden(output, hidden_given(args, kwargs))


def hidden_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a block was called with."""
    return args[0] if args else kwargs["hidden_states"]


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A block's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
