"""The numbers in a Hugging Face config: where they stand, and the config with some of them changed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Key: TypeAlias = tuple[str | int, ...]  # the way to a number: names of (nested) configs, and positions in lists
Values = Mapping[Key, Any]

RATIO = re.compile("ratio|mult|expan")  # floats that are sizes
NOT_SIZES = re.compile(
    "(_ids?|_index|_indices|version|_size_feed_forward|vocab_size|max_position_embeddings|n_positions|n_ctx|seed|"
    "pretraining_tp|theta|_length|_idx|num_labels|chunk_size|window|dropout|_rate|image_size|patch_size|temperature)$"
)
NOT_CONFIG = frozenset({"id2label", "label2id", "task_specific_params", "quantization_config", "rope_parameters"})


def as_dict(config: Any) -> dict[str, Any]:
    """What `config.json` would hold, with every default written out."""
    found: dict[str, Any] = copy.deepcopy(config.to_dict())
    return found


def number_keys(config: Mapping[str, Any], path: Key = ()) -> Iterator[Key]:
    """Every number that may be a size: whole ones, and ratios."""
    for name, value in config.items():
        if name in NOT_CONFIG or (isinstance(name, str) and (name.startswith("_") or NOT_SIZES.search(name))):
            continue
        if isinstance(value, Mapping):
            yield from number_keys(value, (*path, name))
        elif isinstance(value, list | tuple):
            yield from ((*path, name, i) for i, item in enumerate(value) if _is_size(name, item))
        elif _is_size(name, value):
            yield (*path, name)


def _is_size(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and value > 0) or (isinstance(value, float) and RATIO.search(name) is not None)


def value_at(config: Mapping[str, Any], key: Key) -> Any:
    """The value at a key; None where nothing stands."""
    here: Any = config
    for part in key:
        if isinstance(here, Mapping):
            here = here.get(part)
        else:
            here = here[part] if isinstance(part, int) and isinstance(here, list | tuple) else None
    return here


def changed(config: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """A copy of the config with other values at some keys."""
    new = copy.deepcopy(dict(config))
    for key, value in values.items():
        here: Any = new
        for part in key[:-1]:
            if isinstance(here[part], tuple):
                here[part] = list(here[part])
            here = here[part]
        here[key[-1]] = value
    return new


def spelled(key: Key) -> str:
    """ "text_config.intermediate_size", "hidden_sizes[2]": the key as messages and plans write it."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in key).lstrip(".")
