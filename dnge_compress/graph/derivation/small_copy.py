"""A small random copy of an architecture: the same tensors and modules, narrower, with fewer blocks."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dnge_compress.graph.derivation.architecture import Architecture, BuildError
from dnge_compress.graph.derivation.config_keys import Key, Values, changed, number_keys, value_at
from dnge_compress.graph.derivation.example_inputs import example_inputs
from dnge_compress.graph.derivation.layers import Blocks, block_stacks
from dnge_compress.graph.derivation.pictures import PIXELS, TOKENS

VOCABULARY = 512
WIDE = 64  # widths above are divided
MOST_BLOCKS = 5
TOKEN = re.compile("(token_id|token_index|_token)$")
MOST_NUMBERS = 100_000_000  # of parameters that a copy may have
MANY_NUMBERS = 4_000_000  # from here on, widths that stand alone are divided further
SECTIONS = "mrope_section"  # parts of a head's rotary channels
POSITIONS = re.compile("^max_(source|target)_positions$")
FEW_POSITIONS = 60
COUNTS = re.compile("^(?!.*(size|dim|width)).*expert")  # of experts, which a router chooses from
EXPERTS = re.compile("experts$")
PER_TOKEN = re.compile("top_?k$|per_tok|moe_k$")  # how many experts a token goes to
FEW_EXPERTS = 16
DIVISORS = (32, 16, 8, 4, 2, 1)
VISION = "vision_config"
PER_PICTURE = {"mm_tokens_per_image", "image_seq_length", "num_image_tokens"}
LEAST_SIDE = 8  # patches along each side of a picture


@dataclass(frozen=True)
class SmallCopy:
    """A config, a model made of it, and inputs that it takes."""

    config: Mapping[str, Any]
    model: nn.Module
    inputs: dict[str, Tensor]


def small_copy(architecture: Architecture, config: Mapping[str, Any]) -> SmallCopy | None:
    """The smallest copy that builds, runs and has the architecture's tensors; None if not even the whole one runs.

    What reads pictures is divided less than the rest where it takes none else.
    """
    fewer = changed(config, _few_experts(config))
    config = fewer if architecture.outline(fewer) is not None else config
    shallow = with_few_blocks(architecture, changed(config, _few_tokens(config)))
    base = architecture.outline(shallow)
    if base is None:
        return None
    dims = {name: len(shape) for name, shape in base.shapes.items()}
    for divisor in DIVISORS:
        found = _copy_divided(architecture, shallow, divisor, dims)
        if found is not None:
            return _narrowed(architecture, found, dims)
    return None


def _narrowed(architecture: Architecture, found: SmallCopy, dims: Mapping[str, int]) -> SmallCopy:
    """A large copy with the widths divided further that nothing else in the config equals, if it takes the same."""
    if sum(p.numel() for p in found.model.parameters()) < MANY_NUMBERS:
        return found
    every = {key: value_at(found.config, key) for key in number_keys(found.config)}
    counts = Counter(every.values())
    alone = {key: v for key, v in every.items() if counts[v] == 1 and type(v) is int and v >= WIDE * DIVISORS[0]}
    values = {key: v // _largest_divisor(v) for key, v in alone.items() if not COUNTS.search(str(key[-1]))}
    narrow = _copy_of(architecture, changed(found.config, values), dims) if values else None
    return found if narrow is None or narrow.inputs.keys() != found.inputs.keys() else narrow


def _largest_divisor(width: int) -> int:
    """The most that a width can be divided by so that it stays even."""
    return max(n for n in range(1, DIVISORS[0] + 1) if width % (2 * n) == 0 or n == 1)


def _copy_divided(
    architecture: Architecture, config: Mapping[str, Any], divisor: int, dims: Mapping[str, int]
) -> SmallCopy | None:
    """A copy with every width divided; those of a tower for pictures less, where it takes none else. One that reads
    texts alone if none takes pictures."""
    tower = _tower(config)
    if tower is None:
        return _copy_of(architecture, changed(config, _divided(config, divisor)), dims)
    plain: SmallCopy | None = None
    for own in (n for n in DIVISORS if n <= divisor):
        narrow = changed(config, _divided(config, divisor, tower, own))
        for pictures in (_small_pictures(config, tower), {}):
            found = _copy_of(architecture, changed(narrow, pictures), dims)
            if found is not None and PIXELS in found.inputs:
                return found
            plain = plain or found
        if plain is None:
            return None  # it isn't the tower that is too narrow
    return plain


def _tower(config: Mapping[str, Any]) -> str | None:
    """The part of a config that is about pictures in a text."""
    has_token = any(type(config.get(name)) is int for name in TOKENS)
    return VISION if has_token and isinstance(config.get(VISION), Mapping) else None


def _small_pictures(config: Mapping[str, Any], tower: str) -> Values:
    """Pictures of fewer patches, with as many fewer tokens for each where the config counts them."""
    size, patch = (config[tower].get(name) for name in ("image_size", "patch_size"))
    if type(size) is not int or type(patch) is not int:
        return {}
    side = size // patch
    counts: dict[Key, int] = {(n,): v for n, v in config.items() if n in PER_PICTURE and type(v) is int}
    for share in range(side // LEAST_SIDE, 1, -1):
        if side % share == 0 and all(v % share**2 == 0 for v in counts.values()):
            return {(tower, "image_size"): patch * (side // share)} | {k: v // share**2 for k, v in counts.items()}
    return {}


def _copy_of(architecture: Architecture, narrow: Mapping[str, Any], dims: Mapping[str, int]) -> SmallCopy | None:
    outline = architecture.outline(narrow)
    if outline is None or {name: len(shape) for name, shape in outline.shapes.items()} != dims:
        return None
    if sum(math.prod(shape) for shape in outline.shapes.values()) > MOST_NUMBERS:
        return None
    try:
        model = architecture.random(narrow)
    except BuildError:
        return None
    inputs = example_inputs(model)
    return None if inputs is None else SmallCopy(narrow, model, inputs)


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


def _few_experts(config: Mapping[str, Any]) -> Values:
    """Experts as many as can still be chosen from in the same way, where there are many."""
    values: dict[Key, Any] = {}
    for key in number_keys(config):
        value, level = value_at(config, key), value_at(config, key[:-1]) if len(key) > 1 else config
        is_count = EXPERTS.search(str(key[-1])) and type(value) is int and value > FEW_EXPERTS
        if is_count and value % FEW_EXPERTS == 0 and 2 * chosen_at_once(level, level.get("n_group")) <= FEW_EXPERTS:
            values[key] = FEW_EXPERTS
    return values


def chosen_at_once(level: Mapping[str, Any], groups: Any) -> int:
    """As many experts as a token goes to, and two in each group that a router first chooses from."""
    most = max((v for k, v in level.items() if PER_TOKEN.search(k) and type(v) is int), default=1)
    return max(most, 2 * groups if type(groups) is int and groups > 1 else 1)


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


def _divided(config: Mapping[str, Any], divisor: int, tower: str = "", own: int = 1) -> Values:
    """Every width that is large enough, divided; those that only a `tower` has by its `own` number."""
    values: dict[Key, Any] = {}
    outside = {value_at(config, key) for key in number_keys(config) if key[0] != tower}
    for key in number_keys(config):
        value = value_at(config, key)
        by = own if key[0] == tower and value not in outside else divisor
        if COUNTS.search(str(key[-1])):
            continue
        if type(value) is int and value >= WIDE and value % (2 * by) == 0 and value // by >= 4:
            values[key] = value // by
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
