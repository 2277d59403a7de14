"""Which blocks may be dropped: the number whose change removes tensors, and the lists that shrink with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.derivation.architecture import Architecture, Outline
from dnge_compress.graph.derivation.config_keys import Key, changed, number_keys, value_at
from dnge_compress.graph.derivation.example_inputs import run
from dnge_compress.graph.derivation.proof import Outcome, compared

PER_LAYER = re.compile("layer|type|block|rope|window|pattern")  # lists that surely have one entry per block
INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A stack of blocks that the config counts: their module paths, and the lists with one entry for each."""

    key: Key
    modules: tuple[str, ...]
    lists: tuple[Key, ...]

    def without(self, config: Mapping[str, Any], gone: int) -> dict[str, Any]:
        """The config of the architecture without one block."""
        return without_blocks(config, self.key, self.lists, (gone,))


def without_blocks(
    config: Mapping[str, Any], key: Key, lists: tuple[Key, ...], gone: tuple[int, ...]
) -> dict[str, Any]:
    """The config without some blocks: their number, and their entries in every list."""
    values: dict[Key, Any] = {key: value_at(config, key) - len(gone)}
    for path in lists:
        values[path] = [item for i, item in enumerate(value_at(config, path)) if i not in gone]
    return changed(config, {**values, **_stage_names(config, key, len(gone))})


def _stage_names(config: Mapping[str, Any], key: Key, gone: int) -> dict[Key, Any]:
    """A backbone's config names every block and the stem; it names them itself where its outputs are the default."""
    names = value_at(config, (*key[:-1], "stage_names"))
    if not isinstance(names, list) or len(names) != value_at(config, key) + 1:
        return {}
    level = key[:-1]
    return {(*level, "stage_names"): names[:-gone], (*level, "out_features"): None, (*level, "out_indices"): None}


def block_stacks(architecture: Architecture, config: Mapping[str, Any]) -> Iterator[Blocks]:
    """Every number of the config that counts the blocks of one stack."""
    base = architecture.outline(config)
    if base is None:
        return
    for key in number_keys(config):
        value = value_at(config, key)
        if not isinstance(value, int) or value < 2:
            continue
        for lists in _lists_of(config, key, value):
            fewer = architecture.outline(without_blocks(config, key, lists, (value - 1,)))
            if fewer is None:
                continue
            modules = _lost(base, fewer, value)
            if modules:
                yield Blocks(key=key, modules=modules, lists=lists)
                break


def _lists_of(config: Mapping[str, Any], key: Key, length: int) -> Iterator[tuple[Key, ...]]:
    """The lists beside the key with as many entries; and none, where they are something else."""
    here = value_at(config, key[:-1]) if len(key) > 1 else config
    found: tuple[Key, ...] = ()
    if isinstance(here, Mapping):
        found = tuple((*key[:-1], name) for name, v in here.items() if isinstance(v, list | tuple) and len(v) == length)
    yield from dict.fromkeys((found, tuple(path for path in found if PER_LAYER.search(str(path[-1]))), ()))


def _lost(base: Outline, fewer: Outline, value: int) -> tuple[str, ...]:
    """The modules of a stack whose last one is lost; none if anything else is different."""
    lost = base.shapes.keys() - fewer.shapes.keys()
    if not lost or any(base.shapes.get(name) != shape for name, shape in fewer.shapes.items()):
        return ()
    stacks = {name[: match.start()] for name in lost if (match := _last_block(name, value - 1))}
    if len(stacks) != 1 or any(not name.startswith(f"{next(iter(stacks))}.{value - 1}.") for name in lost):
        return ()
    stack = next(iter(stacks))
    modules = tuple(f"{stack}.{i}" for i in range(value))
    if not all(any(name.startswith(f"{m}.") for name in base.shapes) for m in modules):
        return ()
    return modules


def _last_block(name: str, index: int) -> re.Match[str] | None:
    return next((m for m in INDEX.finditer(name) if int(m[1]) == index), None)


def droppable(
    architecture: Architecture, config: Mapping[str, Any], model: nn.Module, inputs: dict[str, Tensor], blocks: Blocks
) -> list[Outcome]:
    """For every block of the small copy whether the architecture without it computes what skipping it does."""
    return [
        prove_drop(architecture, blocks.without(config, i), model, inputs, blocks.modules, i)
        for i in range(len(blocks.modules))
    ]


def prove_drop(
    architecture: Architecture,
    fewer: Mapping[str, Any],
    model: nn.Module,
    inputs: dict[str, Tensor],
    modules: tuple[str, ...],
    gone: int,
) -> Outcome:
    """Whether the weights without one block, loaded into the architecture with one less, compute the same."""
    state = {}
    for name, tensor in model.state_dict().items():
        new = renamed(name, modules, gone)
        if new is not None:
            state[new] = tensor.detach()
    try:
        small = architecture.empty(fewer)
        small.load_state_dict(state, strict=True)
        with torch.no_grad():
            dense = run(model, inputs)
            actual = run(small, inputs)
            with ExitStack() as stack:
                handle = model.get_submodule(modules[gone]).register_forward_hook(pass_on, with_kwargs=True)
                stack.callback(handle.remove)
                expected = run(model, inputs)
    except Exception as e:  # whatever a model raises when a block is missing is the answer "no"
        return Outcome(False, f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:200])
    return compared(dense, expected, actual)


def renamed(name: str, modules: tuple[str, ...], gone: int) -> str | None:
    """What a tensor is called when one block is missing; None if it went with it."""
    for i, module in enumerate(modules):
        if name.startswith(f"{module}."):
            if i == gone:
                return None
            return name if i < gone else modules[i - 1] + name[len(module) :]
    return name


def pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A block's input in the place of its output."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
