"""The dense model with units masked: what surgery must equal, without touching a weight.

Zeroing the columns through which a unit is read removes it exactly; skipping a block removes a layer. Weights are
swapped for the length of a call (torch.func.functional_call), never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dnge_compress.graph.types import Cut, ModelGraph, Slot


class MaskedModel(nn.Module):
    """A view of `model` under `cuts`: call it as the model itself. Nothing of the model is changed.

    `refitted` may replace readers' weights and biases (the repair), with removed columns zero.
    """

    def __init__(
        self, model: nn.Module, graph: ModelGraph, cuts: Iterable[Cut], refitted: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self._dense = [model]  # in a list, so that the parameters stay the model's own
        self._skipped = []
        overrides: dict[str, Tensor] = {}
        weights = dict(model.named_parameters())
        for cut in cuts:
            space = graph.space(cut.space)
            if space.kind == "layer":
                self._skipped += [m for i, m in enumerate(space.modules) if i not in cut.keep]
                continue
            for slot in graph.consumers(cut.space):
                weight = overrides.get(slot.param, weights[slot.param].detach())
                overrides[slot.param] = zeroed(weight, slot, space.units, cut.keep)
        self._overrides = overrides | dict(refitted or {})
        self.config = getattr(model, "config", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The masked model's output."""
        model = self._dense[0]
        with skipped(model, self._skipped):
            return functional_call(model, self._overrides, args, kwargs)


@contextmanager
def skipped(model: nn.Module, modules: Iterable[str]) -> Iterator[None]:
    """Blocks pass their input on, for the length of the context."""
    handles = [model.get_submodule(m).register_forward_hook(_pass_on, with_kwargs=True) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def zeroed(weight: Tensor, slot: Slot, units: int, keep: Iterable[int]) -> Tensor:
    """A copy of `weight` in which the rows of all units but `keep` are zero along the slot's axis."""
    rows = slot_rows(slot, units_gone(units, keep))
    return weight.index_fill(slot.axis, rows.to(weight.device), 0)


def units_gone(units: int, keep: Iterable[int]) -> Tensor:
    """The units of a space that are not kept, ascending."""
    gone = torch.ones(units, dtype=torch.bool)
    gone[list(keep)] = False
    return gone.nonzero().squeeze(1)


def slot_rows(slot: Slot, units: Tensor) -> Tensor:
    """The rows of a slot's tensor that belong to `units`, in order."""
    return (slot.offset + units[:, None] * slot.width + torch.arange(slot.width)).flatten()


def _pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
