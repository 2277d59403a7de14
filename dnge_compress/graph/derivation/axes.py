"""Differentiate an architecture with respect to its config: which axes move when a number does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from dnge_compress.graph.derivation.architecture import Architecture, Outline
from dnge_compress.graph.derivation.config_keys import Key, changed, number_keys
from dnge_compress.graph.derivation.heads import head_counts, is_head_count
from dnge_compress.graph.derivation.numbered import numbered_modules
from dnge_compress.graph.derivation.readings import Base, Counted, single

PROBE = 24  # a value for keys that are None, to see what they set
HEAD_SIZE = "head_dim"
OTHER_HEAD_SIZES = {"d_kv", "d_head"}


def counted_axes(
    architecture: Architecture, config: Mapping[str, Any], like: Counted | None = None
) -> Iterator[Counted]:
    """Every reading of the config's numbers as counts of axes; alternatives for heads stand in order of preference.

    With `like`, only the readings of the same numbers as in another config of the architecture.
    """
    outline = architecture.outline(config)
    if outline is None:
        return
    explicit = explicit_defaults(architecture, config, outline, None if like is None else set(like.explicit))
    base = Base(architecture, changed(config, explicit), outline, explicit)
    numbers = list(dict.fromkeys(number_keys(base.config)))
    wanted = numbers if like is None else [key for key in numbers if key in dict(like.keys)]
    for key in wanted:
        if not is_head_count(key) and (found := single(base, key) or numbered_modules(base, key)):
            yield found
    for key in filter(is_head_count, wanted):
        for found in head_counts(base, key, numbers):
            yield replace(found, are_heads=True)


def explicit_defaults(
    architecture: Architecture, config: Mapping[str, Any], outline: Outline, only: set[Key] | None = None
) -> dict[Key, Any]:
    """Keys that are None, or a head size that isn't there, and the sizes that stand behind them."""
    base = Base(architecture, config, outline, {})
    found: dict[Key, Any] = {}
    for key in [key for key in _unset(config) if only is None or key in only]:
        probed = base.moved({key: PROBE})
        guesses = {Fraction(PROBE * old, new) for old, new in probed[1].values()} if probed else set()
        for guess in sorted(guesses):
            if guess.denominator == 1 and architecture.outline(changed(config, {key: int(guess)})) == outline:
                found[key] = int(guess)
                break
    return found


def _unset(config: Mapping[str, Any], path: Key = ()) -> Iterator[Key]:
    for name, value in config.items():
        if isinstance(value, Mapping) and name not in ("id2label", "label2id"):
            yield from _unset(value, (*path, name))
        elif value is None and not name.endswith(("_id", "_ids", "dtype", "type", "_implementation")):
            yield (*path, name)
    has_heads = any("head" in name and type(value) is int for name, value in config.items())
    if has_heads and HEAD_SIZE not in config and not OTHER_HEAD_SIZES & config.keys():
        yield (*path, HEAD_SIZE)
