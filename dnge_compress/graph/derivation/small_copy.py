"""A small random copy of an architecture: the same tensors and modules, narrower, with fewer blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dnge_compress.graph.derivation.architecture import Architecture, BuildError
from dnge_compress.graph.derivation.config_keys import Key, Values, changed, number_keys, value_at
from dnge_compress.graph.derivation.example_inputs import example_inputs
from dnge_compress.graph.derivation.layers import Blocks, block_stacks

VOCABULARY = 512
WIDE = 64  # widths above are divided
MOST_BLOCKS = 5
TOKEN = re.compile("(token_id|token_index|_token)$")
MOST_NUMBERS = 100_000_000  # of parameters that a copy may have
SECTIONS = "mrope_section"  # parts of a head's rotary channels
POSITIONS = re.compile("^max_(source|target)_positions$")
FEW_POSITIONS = 60
COUNTS = re.compile("^(?!.*(size|dim|width)).*expert")  # of experts, which a router chooses from
DIVISORS = (32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class SmallCopy:
    """A config, a model made of it, and inputs that it takes."""

    config: Mapping[str, Any]
    model: nn.Module
    inputs: dict[str, Tensor]


def small_copy(architecture: Architecture, config: Mapping[str, Any]) -> SmallCopy | None:
    """The smallest copy that builds, runs and has the architecture's tensors; None if not even the whole one runs."""
    shallow = with_few_blocks(architecture, changed(config, _few_tokens(config)))
    base = architecture.outline(shallow)
    if base is None:
        return None
    dims = {name: len(shape) for name, shape in base.shapes.items()}
    for divisor in DIVISORS:
        narrow = changed(shallow, _divided(shallow, divisor))
        outline = architecture.outline(narrow)
        if outline is None or {name: len(shape) for name, shape in outline.shapes.items()} != dims:
            continue
        if sum(math.prod(shape) for shape in outline.shapes.values()) > MOST_NUMBERS:
            return None
        try:
            model = architecture.random(narrow)
        except BuildError:
            continue
        inputs = example_inputs(model)
        if inputs is not None:
            return SmallCopy(narrow, model, inputs)
    return None


def with_few_blocks(architecture: Architecture, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with stacks of a few blocks, in which every kind of block of the lists is left."""
    for blocks in list(block_stacks(architecture, config)):
        if len(blocks.modules) > MOST_BLOCKS:
            fewer = blocks.without(config, *_superfluous(config, blocks))
            if architecture.outline(fewer) is not None:
                config = fewer
    return config


def _superfluous(config: Mapping[str, Any], blocks: Blocks) -> tuple[int, ...]:
    """Blocks in the middle whose kind stands earlier too, as many as are too many."""
    count = len(blocks.modules)
    kinds = [tuple(str(value_at(config, path)[i]) for path in blocks.lists) for i in range(count)]
    seen: set[tuple[str, ...]] = set()
    spare = []
    for i in range(count - 1):
        if kinds[i] in seen and i > 1:
            spare.append(i)
        seen.add(kinds[i])
    return tuple(spare[: count - MOST_BLOCKS])


def _few_tokens(config: Mapping[str, Any]) -> Values:
    """A small vocabulary, with the special tokens moved into it, and short inputs."""
    values: dict[Key, Any] = {}
    _collect_tokens(config, (), values)
    return values


def _collect_tokens(config: Mapping[str, Any], path: Key, values: dict[Key, Any]) -> None:
    own = config.get("vocab_size")
    for name, value in config.items():
        if isinstance(value, Mapping) and name not in ("id2label", "label2id"):
            _collect_tokens(value, (*path, name), values)
        elif "vocab_size" in name and isinstance(value, int) and value > VOCABULARY:
            values[(*path, name)] = VOCABULARY
        elif POSITIONS.search(name) and isinstance(value, int) and value > FEW_POSITIONS:
            values[(*path, name)] = FEW_POSITIONS
        elif TOKEN.search(name) and isinstance(value, int) and value >= VOCABULARY:
            values[(*path, name)] = VOCABULARY - 1 - value % 97
        elif TOKEN.search(name) and isinstance(value, list) and isinstance(own, int):
            values[(*path, name)] = [v % (VOCABULARY // 2) if isinstance(v, int) else v for v in value]


def _divided(config: Mapping[str, Any], divisor: int) -> Values:
    """Every width that is large enough, divided."""
    values: dict[Key, Any] = {}
    for key in number_keys(config):
        value = value_at(config, key)
        if COUNTS.search(str(key[-1])):
            continue
        if type(value) is int and value >= WIDE and value % (2 * divisor) == 0 and value // divisor >= 4:
            values[key] = value // divisor
    for key in sections(config):
        parts = value_at(config, key)
        if all(part % divisor == 0 for part in parts):
            values[key] = [part // divisor for part in parts]
    return values


def sections(config: Mapping[str, Any], path: Key = ()) -> Iterator[Key]:
    """Lists of rotary channels, which grow with the size of a head."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from sections(value, (*path, name))
        elif name == SECTIONS and isinstance(value, list | tuple):
            yield (*path, name)
