"""The dense model with units masked: what surgery must equal, without touching a weight.

Zeroing the columns through which a unit is read removes it exactly; skipping a block removes a layer. Weights are
swapped for the length of a call (torch.func.functional_call), never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.products import MaskedRouters
from dnge_compress.graph.types import Slot


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
        weights = dict(model.named_parameters())
        for cut in applied.cuts:
            gone = cut.gone(applied.graph.space(cut.space).units)
            for slot in applied.graph.slots_of(cut.space):
                if slot.param in weights and applied.graph.step_of(slot.param).op == "router" and slot.axis == 0:
                    self._routers.append((weights[slot.param], gone))
            for slot in applied.graph.consumers(cut.space):
                weight = overrides.get(slot.param, weights[slot.param].detach())
                overrides[slot.param] = zeroed(weight, slot, gone)
        self._overrides = overrides | dict(repaired or {})
        self.config = getattr(model, "config", None)

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
            hooks.enter_context(model.get_submodule(m).register_forward_hook(_pass_on, with_kwargs=True))
        yield


def zeroed(weight: Tensor, slot: Slot, units: Tensor) -> Tensor:
    """A copy of `weight` in which the rows of `units` are zero along the slot's axis."""
    rows = slot.rows(units).to(weight.device)
    if slot.part is None:
        return weight.index_fill(slot.axis, rows, 0)
    weight = weight.clone()
    weight[slot.part] = weight[slot.part].index_fill(slot.axis - 1, rows, 0)
    return weight


def _pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
