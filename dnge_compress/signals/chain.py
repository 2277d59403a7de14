"""A network as a chain of blocks, run one block at a time.

Of a deep network most is a row of blocks, each of which turns the hidden states of the one before into its own. Block
by block, all inputs pass one block before any passes the next: only the states between blocks are kept, backward each
block is computed once more, and nothing is alive but the graph of one block (checkpointing, Chen et al. 2016). What is
in front of the blocks and behind them is the model's own forward, with the blocks left out.

Whether a model is such a chain is seen by running it: each block once, reading just what the one before returned. That
nothing else passes between blocks is proved by the gradient of one example, which must be that of the model run whole:
for that the graph of one example has to fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.masking import hidden_given, with_hidden
from dnge_compress.graph.tracing.running import tensors_in
from dnge_compress.graph.types import ModelGraph
from dnge_compress.signals.inference import Inputs, call, first_examples

# Both ways run the same operations: on a CPU in the same order, while cards sum up as they like.
TOLERANCE = 1e-6
ON_CARDS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}

Loss = Callable[[Tensor], Tensor]  # of the model's main output


@dataclass(frozen=True)
class Call:
    """The arguments of a block for one batch, whose hidden states are put in later."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's hidden states for these."""
        if self.args:
            return _hidden(block(hidden, *self.args[1:], **self.kwargs))
        return _hidden(block(**{**self.kwargs, "hidden_states": hidden}))


@dataclass(frozen=True)
class Chain:
    """Blocks in the order in which they run; `outputs` is what each returns, with `None` for the hidden states."""

    model: nn.Module
    paths: tuple[str, ...]
    outputs: tuple[Any, ...] = field(repr=False)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """How names of what is inside the blocks begin."""
        return tuple(f"{path}." for path in self.paths)

    def block(self, index: int) -> nn.Module:
        """One of the blocks."""
        return self.model.get_submodule(self.paths[index])

    def enter(self, batch: Inputs) -> tuple[Tensor, list[Call]]:
        """The hidden states that the first block reads of a batch, and with what else each block is called."""
        entered: list[Tensor] = []
        calls: list[Call] = []

        def record(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = hidden_given(args, kwargs)
            entered.append(hidden)
            calls.append(Call((None, *args[1:]), kwargs) if args else Call((), {**kwargs, "hidden_states": None}))
            if index == len(self.paths) - 1:
                raise _EnteredError
            return with_hidden(self.outputs[index], hidden)

        with self._in_place_of_blocks(record):
            try:
                call(self.model, batch)
            except _EnteredError:
                return entered[0], calls
        raise AssertionError("the last block was not reached")

    def leave(self, batch: Inputs, hidden: Tensor) -> Tensor:
        """The model's main output for a batch whose last block returned `hidden`."""

        def pass_on(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            is_last = index == len(self.paths) - 1
            return with_hidden(self.outputs[index], hidden if is_last else hidden_given(args, kwargs))

        with self._in_place_of_blocks(pass_on):
            return call(self.model, batch)

    def back(self, index: int, given: Call, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Run one block again and send a gradient at its output back through it; the gradient at its input."""
        read = hidden.detach().clone().requires_grad_()  # not a view of a file: nothing is written there
        given.run(self.block(index), read).backward(gradient)
        assert read.grad is not None
        return read.grad

    @contextmanager
    def _in_place_of_blocks(self, replacement: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
        """While entered, blocks answer with `replacement(index, args, kwargs)`."""
        blocks = [self.block(i) for i in range(len(self.paths))]
        before = [block.__dict__.get("forward") for block in blocks]
        for i, block in enumerate(blocks):
            block.__dict__["forward"] = lambda *args, i=i, **kwargs: replacement(i, args, kwargs)
        try:
            yield
        finally:
            for block, own in zip(blocks, before, strict=True):
                del block.__dict__["forward"]
                if own is not None:
                    block.__dict__["forward"] = own


class _EnteredError(Exception):
    """All that is in front of the blocks has run."""


def chain_of(model: nn.Module, graph: ModelGraph, batch: Inputs, loss: Loss) -> Chain | None:
    """The model as a chain of blocks; None if it is none. `batch` is what it is tried on: one example.

    The model must be in inference mode. `loss` must be the same whenever it is called.
    """
    paths = [path for space in graph.of_kind("layer") for path in space.modules]
    if not paths:
        return None
    few = first_examples([batch], 1)[0]
    run = _Run(paths)
    with torch.enable_grad(), run.watched(model):
        try:
            loss(call(model, few)).backward()
        except _NoChainError:
            return None
    if not run.is_chain:
        return None
    chain = Chain(model, tuple(run.paths), tuple(_shell(out) for out in run.outputs))
    return chain if _agrees(chain, few, loss, run.gradient) else None


class _NoChainError(Exception):
    """A block runs twice, or reads something else than the one before wrote."""


class _Run:
    """What blocks read and return as the whole model runs."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.wanted, self.paths, self.outputs = set(paths), list[str](), list[Any]()
        self.start: Tensor | None = None

    @property
    def is_chain(self) -> bool:
        """Whether every block ran, and the gradient came back to the first."""
        return set(self.paths) == self.wanted and self.gradient is not None

    @property
    def gradient(self) -> Tensor | None:
        """What came back to where the blocks begin."""
        return None if self.start is None else self.start.grad

    @contextmanager
    def watched(self, model: nn.Module) -> Iterator[None]:
        """While entered, what the blocks do is written down."""
        hooks = []
        for path in self.wanted:
            block = model.get_submodule(path)
            hooks.append(block.register_forward_pre_hook(self._begin, with_kwargs=True))
            hooks.append(block.register_forward_hook(lambda m, args, out, path=path: self._end(path, out)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args and "hidden_states" not in kwargs:
            raise _NoChainError
        hidden, others = (
            hidden_given(args, kwargs),
            (*args[1:], *(v for k, v in kwargs.items() if k != "hidden_states")),
        )
        if not isinstance(hidden, Tensor) or any(t.requires_grad for t in tensors_in(others)):
            raise _NoChainError
        if self.outputs:
            if hidden is not _hidden(self.outputs[-1]):
                raise _NoChainError
            return None
        self.start = hidden.detach().requires_grad_()
        hidden = self.start.clone()  # a leaf may not be changed in place
        return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

    def _end(self, path: str, out: Any) -> None:
        rest = out[1:] if isinstance(out, tuple) else ()
        if path in self.paths or not isinstance(_hidden(out), Tensor) or list(tensors_in(rest)):
            raise _NoChainError
        self.paths.append(path)
        self.outputs.append(out)


def _shell(output: Any) -> Any:
    """What a block returns, without its hidden states."""
    return (None, *output[1:]) if isinstance(output, tuple) else None


def _hidden(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output


def _agrees(chain: Chain, few: Inputs, loss: Loss, wanted: Tensor | None) -> bool:
    """Whether block by block the gradient is the same."""
    if wanted is None:
        return False
    with torch.no_grad():
        hidden, calls = chain.enter(few)
        if len(calls) != len(chain.paths):
            return False
        states = [hidden]
        for i, given in enumerate(calls):
            states.append(given.run(chain.block(i), states[-1]))
    gradient = gradient_behind(chain, few, states[-1], loss)[0]
    with torch.enable_grad():
        for i in reversed(range(len(calls))):
            gradient = chain.back(i, calls[i], states[i], gradient)
    off = (gradient.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-30)
    return bool(off <= (TOLERANCE if wanted.device.type == "cpu" else ON_CARDS.get(wanted.dtype, 0.0)))


def gradient_behind(chain: Chain, batch: Inputs, hidden: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """The gradient of the loss at what the last block returned, and the model's main output."""
    with torch.enable_grad():
        read = hidden.detach().clone().requires_grad_()
        output = chain.leave(batch, read)
        loss(output).backward()
    assert read.grad is not None
    return read.grad, output.detach()
