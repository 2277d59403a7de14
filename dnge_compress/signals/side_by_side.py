"""The second half of the repair: refit every consumer on what it reads in the pruned network itself.

The one-shot refit (signals/refit.py) sees each matrix alone, on the whole network's activations; errors then add up
from layer to layer. Here the whole and the pruned network run side by side, as the two halves of one batch. When a
consumer is reached, all before it is repaired already: its weights are fitted on the inputs that it will really have,
towards the whole network's output, and where the output is added to a residual stream, towards the whole network's
stream, so that what earlier layers lost is taken back (error accumulation as in Týr-the-Pruner, NeurIPS 2025). The
ridge pulls towards the one-shot solution; its strength, and whether to refit, to move the mean or to do nothing at all,
is decided for each consumer on examples that the fit hasn't seen. Where asked for, the matrices that compute the kept
neurons are refitted with their consumer (signals/joint_fit.py).
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from dnge_compress.core.memory import give_back
from dnge_compress.core.paging import Shelf
from dnge_compress.core.parts import NOTHING_KEPT, Parts
from dnge_compress.core.processes import agreed, each_alone
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.layer_types import CONVS
from dnge_compress.graph.masking import hidden_given, with_hidden
from dnge_compress.graph.tracing.running import tensors_in
from dnge_compress.signals.activations import counted_positions, read_by, rows_at, rows_written, windows
from dnge_compress.signals.divergence import attended
from dnge_compress.signals.fits import Consumer, Fit, best_fit, consumers_of, spread_examples_of
from dnge_compress.signals.inference import Inputs, call, inference_mode_of
from dnge_compress.signals.joined import joined
from dnge_compress.signals.layer_refit import LayerRefit, Positions, layer_refits
from dnge_compress.signals.own_examples import OwnExamples, own_examples
from dnge_compress.signals.pieces import positions_at_once
from dnge_compress.signals.signal import Signals

ROWS_PER_FEATURE = 16  # of a convolution's patches
ADDS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
UNTOUCHING = {"dropout", "dim", "size", "numel", "stride", "is_floating_point", "is_contiguous", "__hash__", "__len__"}


class SideBySide:
    """The refit of one model's consumers under cuts, from the one-shot solution in `values`; with the matrices that
    compute the kept neurons, where these have at most `most_joint` numbers. `parts` keep what is finished."""

    def __init__(
        self,
        model: nn.Module,
        signals: Signals,
        applied: AppliedCuts,
        values: Mapping[str, Tensor],
        *,
        parts: Parts = NOTHING_KEPT,
        most_joint: float = 0,
    ) -> None:
        self.model, self.applied, self.values = model, applied, values
        self.parts = parts.within("joint-fits" if most_joint else "side-by-side")
        self.consumers = consumers_of(model, signals, applied, values)
        self.layers = layer_refits(model, applied, self.consumers, most_joint)
        refitted = {name for c in self.consumers.values() for name in (c.slot.param, *(c.shift or ())[:1])}
        self.fixed: dict[nn.Module, dict[str, Tensor]] = {}  # what has one-shot values and isn't fitted again
        # The same of batch norms, as differences: they may hold other statistics while both networks run.
        self.moved: dict[nn.Module, dict[str, Tensor]] = {}
        statistics = dict(model.named_buffers())
        for name in values.keys() - refitted:
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            if name in statistics:
                self.moved.setdefault(module, {})[leaf] = values[name] - statistics[name]
            else:
                self.fixed.setdefault(module, {})[leaf] = values[name]

    def run(self, batches: Sequence[Inputs]) -> dict[str, Tensor]:
        """New values of the consumers; the one-shot ones where experts are cut or modules are recurrent, for there the
        two halves can't be told apart."""
        if not self.consumers or self._mixes_halves():
            return dict(self.values)
        whole = joined(batches, positions_at_once(self.model, list(self.consumers), batches, halves=2))
        # Convolutions are fitted on some patches, drawn from those of all examples.
        own = own_examples(whole, can_share=not any(isinstance(module, CONVS) for module in self.consumers))
        untouched = not self.fixed and not self.moved and not self.applied.dropped_modules
        run = _Run(self.consumers, self.layers, own, untouched, self.parts)
        with torch.no_grad(), inference_mode_of(self.model), ExitStack() as hooks:
            if not own.are_shared:
                hooks.enter_context(each_alone())
            for layer in self.layers.values():
                for module in layer.modules:
                    hooks.enter_context(module.register_forward_hook(run.hear, with_kwargs=True))
            for module in self.consumers:
                hooks.enter_context(module.register_forward_hook(run.write, with_kwargs=True))
            for module, values in self.fixed.items():
                hooks.enter_context(module.register_forward_hook(partial(_second_half_with, values)))
            for module, changes in self.moved.items():
                values = {leaf: getattr(module, leaf) + change for leaf, change in changes.items()}
                hooks.enter_context(module.register_forward_hook(partial(_second_half_with, values)))
            for path in self.applied.dropped_modules:
                block = self.model.get_submodule(path)
                hooks.enter_context(block.register_forward_hook(_pass_on_second, with_kwargs=True))
            try:
                with run, suppress(_AllFittedError):
                    call(self.model, joined([own.batch, own.batch]))
                    run.settle_all()
            except _MixedHalvesError:
                return dict(self.values)
        return self.fitted()

    @property
    def has_joint_fits(self) -> bool:
        """Whether a run has refitted a layer on both sides."""
        return any(layer.changes for layer in self.layers.values())

    def _mixes_halves(self) -> bool:
        """Whether something that is cut reads tokens in an order of its own."""
        graph = self.applied.graph
        experts = tuple(f"{module}." for s in graph.of_kind("expert") for module in s.modules)
        recurrent = any(isinstance(m, nn.RNNBase) for m in self.fixed)
        return recurrent or bool(graph.stacks) or any(name.startswith(experts) for name in self.values)

    def fitted(self) -> dict[str, Tensor]:
        """What is known until now; one-shot values of consumers that were not reached."""
        found, weights = dict(self.values), self.model.state_dict(keep_vars=True)
        for module, consumer in self.consumers.items():
            found |= consumer.values()
            if module in self.layers:
                found |= self.layers[module].values(weights)
        return found


class _MixedHalvesError(Exception):
    """The model keeps its examples on another axis than the first one, or mixes them."""


class _AllFittedError(Exception):
    """Every consumer has its weights; what the model would compute behind the last one interests nobody."""


@dataclass
class _Output:
    """What a consumer has computed and nobody has used yet: its second half still comes from the whole weights."""

    module: nn.Module
    read: Tensor
    raw: Tensor
    final: Tensor  # behind the batch norm, if one takes up the mean
    norm: Mapping[str, Any] = field(default_factory=dict)  # that batch norm's arguments


class _Run(TorchFunctionMode):
    """While entered, settles each consumer's output the moment that somebody uses it: only then is it known what it is
    added to."""

    def __init__(
        self,
        consumers: Mapping[nn.Module, Consumer],
        layers: Mapping[nn.Module, LayerRefit],
        own: OwnExamples,
        untouched: bool,
        parts: Parts,
    ) -> None:
        super().__init__()
        self.consumers, self.layers, self.parts = consumers, layers, parts
        self.shelf = Shelf("repaired weights")
        self.computed_by = {module: layer for layer in layers.values() for module in layer.modules}
        self.untouched = untouched  # whether both halves are still the same where the first consumer reads
        self.mask, self.own = attended(own.batch), own
        self.open: dict[int, _Output] = {}
        self.is_settling = False

    def write(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        """A hook: remember what was computed from what."""
        if not self.is_settling:
            self.open[id(out)] = _Output(module, read_by(args, kwargs).to(out.device), out, out)

    def hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        """A hook: remember what the kept neurons are computed from."""
        if not self.is_settling:
            self.computed_by[module].hear(module, read_by(args, kwargs), out)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        used = list(
            {id(a): self.open[id(a)] for a in tensors_in((*args, *kwargs.values())) if id(a) in self.open}.values()
        )
        if not used or func.__name__ in UNTOUCHING:
            return func(*args, **kwargs)
        if func.__name__ == "__get__":  # a shape, or a view of it
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and result is not args[0]:
                self._settle(used[0])
            return result
        if func is Tensor.to and func(*args, **kwargs) is args[0]:  # as accelerate asks, before every module
            return args[0]
        if func is nn.functional.batch_norm and self._takes_shift(used[0], args):
            result = func(*args, **kwargs)
            output = self.open.pop(id(used[0].final))
            output.final, output.norm = result, _arguments(func, args, kwargs)
            self.open[id(result)] = output
            return result
        for output in used[:-1]:
            self._settle(output)
        partner = _partner(used[-1].final, args) if func in ADDS and not kwargs else None
        self._settle(used[-1], partner)
        return func(*args, **kwargs)

    def settle_all(self) -> None:
        """Settle what was computed and not used."""
        for output in list(self.open.values()):
            self._settle(output)

    def _takes_shift(self, output: _Output, args: tuple[Any, ...]) -> bool:
        place, mean = self.consumers[output.module].shift_at, args[1]
        return output.final is args[0] and mean is not None and mean.data_ptr() == place

    def _settle(self, output: _Output, stream: Tensor | None = None) -> None:
        """Fit the consumer if it isn't yet, and write what the pruned network has in the second half."""
        del self.open[id(output.final)]
        consumer, half = self.consumers[output.module], len(output.raw) // 2
        read = output.read[half:]
        is_mixed = bool(len(output.raw) % (2 * len(self.own)))
        is_mixed = is_mixed or (self.untouched and not torch.equal(output.read[:half], read))
        if agreed(is_mixed) is not False:
            raise _MixedHalvesError
        self.untouched = False
        if consumer.value is None:
            target = rows_written(output.module, output.raw[:half]).float()
            if stream is not None:
                lost = rows_written(output.module, stream[:half] - stream[half:]).float()
                target = target + (lost / _scale(output.norm) if output.norm else lost)
            self._settle_consumer(consumer, partial(self._fitted, consumer, output.module, read, target), output.module)
        assert consumer.value is not None and consumer.added is not None
        if output.module in self.layers:
            layer = self.layers[output.module]
            read = layer.read(read)
            layer.forget()
        self.is_settling = True
        weights = {consumer.slot.param.rpartition(".")[2]: consumer.value}
        written = functional_call(output.module, weights, (read,))
        self.is_settling = False
        added = consumer.added.to(written.dtype)
        if isinstance(output.module, CONVS):
            added = added.view(-1, *[1] * (written.dim() - 2))
        written = written + added
        if output.norm:
            written = nn.functional.batch_norm(**{**output.norm, "input": written})
        output.final[half:] = written
        if all(c.value is not None for c in self.consumers.values()):
            raise _AllFittedError

    def _settle_consumer(self, consumer: Consumer, fitted: Callable[[], Fit], module: nn.Module) -> None:
        """Take the fit that a part of the work holds, or that is made now, with the changes of its layer."""
        layer = self.layers.get(module)

        def made() -> dict[str, Tensor]:
            give_back()
            consumer.settle(fitted(), self.shelf)
            assert consumer.value is not None and consumer.added is not None
            return {"value": consumer.value, "added": consumer.added, **({} if layer is None else layer.found())}

        found = self.parts.tensors(consumer.slot.param, made)
        consumer.value, consumer.added = found["value"], found["added"]
        if layer is not None:
            layer.take(found)

    def _fitted(self, consumer: Consumer, module: Any, read: Tensor, target: Float[Tensor, "P D"]) -> Fit:
        rows, layer = len(target), self.layers.get(module)
        positions = counted_positions(self.mask, rows, target.device)
        if isinstance(module, CONVS):
            limit = max(ROWS_PER_FEATURE * len(consumer.keep), 4096)
            picks = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))[:limit]
            positions = positions[picks.to(positions.device)]
        examples = self.own.numbers.to(positions.device)[positions // max(1, rows // len(self.own))]
        is_measured = self.own.are_measured(examples)
        if layer is not None:  # of its positions, those that its producers must not see come last
            order = is_measured.byte().argsort(stable=True)
            examples, positions = examples[order], positions[order]
        if isinstance(module, CONVS):
            x = rows_at(windows(module, read), len(module.kernel_size), positions)
        else:
            x = read.flatten(0, -2)[positions]
        x, target = x[:, consumer.keep].float(), target[positions]
        if getattr(module, "bias", None) is not None:
            target = target - module.bias.detach().float()
        if layer is not None:
            at = Positions(positions, examples, int((~is_measured).sum()))
            found = layer.fit(consumer, x, target, at, rows)
            if found is not None:
                return found
        return best_fit(x, target, spread_examples_of(examples), consumer)


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _scale(norm: Mapping[str, Any]) -> Tensor:
    """By how much a batch norm multiplies each channel."""
    scale = (norm["running_var"].float() + norm["eps"]).rsqrt()
    scale = scale if norm["weight"] is None else scale * norm["weight"].float()
    return torch.where(scale.abs() < 1e-3, torch.full_like(scale, 1e-3).copysign(scale), scale)


def _partner(output: Tensor, args: tuple[Any, ...]) -> Tensor | None:
    """What an output is added to, if it has the same shape."""
    others = [a for a in args if isinstance(a, Tensor) and a is not output]
    return others[0] if len(others) == 1 and others[0].shape == output.shape else None


def _second_half_with(values: Mapping[str, Tensor], module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A module's output, the second half under other weights."""
    half = len(output) // 2
    hooks, module._forward_hooks = module._forward_hooks, OrderedDict()
    try:
        second = functional_call(module, dict(values), (args[0][half:],))
    finally:
        module._forward_hooks = hooks
    return torch.cat([output[:half], second])


def _pass_on_second(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A dropped block's second half is what came in."""
    came, whole = hidden_given(args, kwargs), output[0] if isinstance(output, tuple) else output
    return with_hidden(output, torch.cat([whole[: len(whole) // 2], came[len(came) // 2 :].to(whole.device)]))
