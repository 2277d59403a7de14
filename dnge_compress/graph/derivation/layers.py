"""Which blocks may be dropped: the number whose change removes tensors, and the lists that shrink with it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.derivation.architecture import Architecture, Outline, reason_of
from dnge_compress.graph.derivation.config_keys import Key, changed, number_keys, value_at
from dnge_compress.graph.derivation.example_inputs import run
from dnge_compress.graph.derivation.proof import Outcome, compared
from dnge_compress.graph.masking import skipped

PER_LAYER = re.compile("layer|type|block|rope|window|pattern")  # lists that surely have one entry per block
NOT_PER_LAYER = re.compile("token|image_mean|image_std|_ids?$")
INDICES = re.compile("(indexes|indices|layer_ids|_layers)$")  # lists of the numbers of some blocks
INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A stack of blocks that the config counts: their module paths, and the lists with one entry for each."""

    key: Key
    modules: tuple[str, ...]
    lists: tuple[Key, ...]
    index_lists: tuple[Key, ...] = ()

    def without(self, config: Mapping[str, Any], *gone: int) -> dict[str, Any]:
        """The config of the architecture without some blocks."""
        return without_blocks(config, self.key, self.lists, self.index_lists, gone)


def without_blocks(
    config: Mapping[str, Any], key: Key, lists: tuple[Key, ...], index_lists: tuple[Key, ...], gone: tuple[int, ...]
) -> dict[str, Any]:
    """The config without some blocks: their number, their entries in every list, and their places in others."""
    values: dict[Key, Any] = {key: value_at(config, key) - len(gone)}
    for path in lists:
        values[path] = [item for i, item in enumerate(value_at(config, path)) if i not in gone]
    for path in index_lists:
        values[path] = moved_up(value_at(config, path), gone)
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
        if not isinstance(value, int) or value < 2 or not any(_last_block(name, value - 1) for name in base.shapes):
            continue  # nothing is numbered so, and a build takes its time
        indices = _index_lists(config, key, value)
        for lists in _lists_of(config, key, value):
            fewer = architecture.outline(without_blocks(config, key, lists, indices, (value - 1,)))
            if fewer is None:
                continue
            modules = _lost(base, fewer, value)
            if modules:
                yield Blocks(key=key, modules=modules, lists=lists, index_lists=indices)
                break


def _lists_of(config: Mapping[str, Any], key: Key, length: int) -> Iterator[tuple[Key, ...]]:
    """The lists beside the key with as many entries; and none, where they are something else."""
    here = value_at(config, key[:-1]) if len(key) > 1 else config
    found: tuple[Key, ...] = ()
    if isinstance(here, Mapping):
        alike = (name for name, v in here.items() if isinstance(v, list | tuple) and len(v) == length)
        found = tuple((*key[:-1], name) for name in alike if not NOT_PER_LAYER.search(name))
    yield from dict.fromkeys((found, tuple(path for path in found if PER_LAYER.search(str(path[-1]))), ()))


def _index_lists(config: Mapping[str, Any], key: Key, length: int) -> tuple[Key, ...]:
    """The lists beside the key that name blocks by their number."""
    here = value_at(config, key[:-1]) if len(key) > 1 else config
    if not isinstance(here, Mapping):
        return ()
    return tuple(
        (*key[:-1], name)
        for name, v in here.items()
        if INDICES.search(name) and isinstance(v, list | tuple) and all(type(i) is int and 0 <= i < length for i in v)
    )


def moved_up(indices: Sequence[int], gone: Collection[int]) -> list[int]:
    """Numbers of blocks after others went."""
    return [i - sum(g < i for g in gone) for i in indices if i not in gone]


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
    with torch.no_grad():
        dense = run(model, inputs)
    answers = can_answer(model, inputs)

    def outcome(gone: int) -> Outcome:
        try:
            small = _without(architecture, blocks.without(config, gone), model, blocks.modules, gone)
            with torch.no_grad():
                actual = run(small, inputs)
                with skipped(model, [blocks.modules[gone]]):
                    expected = run(model, inputs)
        except Exception as e:  # whatever a model raises when a block is missing is the answer "no"
            return Outcome(False, reason_of(e))
        if answers and not can_answer(small, inputs):
            return Outcome(False, "without it, it can't generate")
        return compared(dense, expected, actual)

    return [outcome(i) for i in range(len(blocks.modules))]


def _without(
    architecture: Architecture, fewer: Mapping[str, Any], model: nn.Module, modules: tuple[str, ...], gone: int
) -> nn.Module:
    """The architecture with one block less, and the model's weights without that block's."""
    state = {}
    for name, tensor in model.state_dict().items():
        new = renamed(name, modules, gone)
        if new is not None:
            state[new] = tensor.detach()
    small = architecture.empty(fewer)
    small.load_state_dict(state, strict=True)
    return small


def can_answer(model: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether an encoder-decoder generates: some caches want as many blocks in the encoder as in the decoder."""
    if not getattr(model.config, "is_encoder_decoder", False) or not model.can_generate():
        return False
    source = {name: t for name, t in inputs.items() if not name.startswith("decoder")}
    try:
        with torch.no_grad():
            model.generate(**source, max_new_tokens=2, do_sample=False)
    except Exception:  # whatever it raises is the answer "no"
        return False
    return True


def renamed(name: str, modules: tuple[str, ...], gone: int) -> str | None:
    """What a tensor is called when one block is missing; None if it went with it."""
    for i, module in enumerate(modules):
        if name.startswith(f"{module}."):
            if i == gone:
                return None
            return name if i < gone else modules[i - 1] + name[len(module) :]
    return name
