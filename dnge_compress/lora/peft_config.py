"""Adapters as peft's own config. peft is imported here and in the files beside, nowhere else.

peft's rules that shape it (0.21): a pattern key is a regular expression that must match the end of a name, the first
key in order wins, and saving sorts the keys. So keys here never overlap, and are not anchored, since peft also
matches them against names with a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from peft import LoraConfig
from peft.utils.other import get_pattern_key

from dnge_compress.lora.adapters import Adapter
from dnge_compress.recipes.lora_schema import Lora


def config_of(adapters: Sequence[Adapter], lora: Lora, task_type: str | None = None) -> LoraConfig:
    """The adapters as a plain LoraConfig with grouped, mutually exclusive patterns."""
    placed = [a for a in adapters if a.rank > 0]
    everyone = [a.site.path for a in adapters]
    top = max(a.rank for a in adapters)
    uneven = [a for a in placed if a.rank != top]
    ranks = patterns({a.site.path: a.rank for a in uneven}, everyone)
    is_constant_scale = lora.alpha_rule == "constant_scale"
    modules = [a.site.path for a in placed if a.site.kind == "module"]
    parameters = [a.site.path for a in placed if a.site.kind == "parameter"]
    is_transposed = bool(modules) and all(a.site.is_transposed for a in placed if a.site.kind == "module")
    without = [a.site.path for a in adapters if not a.rank and a.site.kind == "module"]
    return LoraConfig(
        task_type=task_type,
        r=top,
        lora_alpha=_whole(lora.lora_scale * top),
        rank_pattern=ranks,
        alpha_pattern={key: _whole(lora.lora_scale * rank) for key, rank in ranks.items()} if is_constant_scale else {},
        target_modules=modules,
        target_parameters=parameters or None,
        # A full name is also the suffix of a longer one: without this, `layers.0.fc` would take `decoder.layers.0.fc`.
        exclude_modules=[n for n in without if any(n.endswith(f".{m}") for m in modules)] or None,
        lora_dropout=lora.lora_dropout,
        init_lora_weights=lora.init_lora_weights,
        fan_in_fan_out=is_transposed,
    )


def patterns(values: Mapping[str, int], everyone: Sequence[str]) -> dict[str, int]:
    """Name → value as few regular expressions → value; none matches a name of `everyone` that it isn't meant for.

    Names that differ in their block's number only, and have the same value, share a key. Python caches 512 compiled
    expressions; with a key per module, peft takes 16 s for a model of 126 blocks.
    """
    groups: dict[tuple[str, str, int], list[str]] = {}
    for name, value in values.items():
        before, number, after = _split_at_block(name)
        groups.setdefault((before, after, value), []).append(number)
    found = {}
    for (before, after, value), numbers in groups.items():
        middle = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
        key = f"{re.escape(before)}{middle}{re.escape(after)}"
        names = [f"{before}{n}{after}" for n in numbers]
        found[f"{_not_behind(names, everyone)}{key}"] = value
    return found


def value_of(patterns: Mapping[str, int] | None, name: str, default: int) -> int:
    """What peft finds for a name in a rank or alpha pattern, by its own matcher."""
    given = patterns or {}
    return given.get(get_pattern_key(list(given), name), default)


def _split_at_block(name: str) -> tuple[str, str, str]:
    """("model.layers.", "3", ".mlp.up_proj"); a name without a number is all of the first part."""
    found = re.search(r"(?<![^.])\d+(?![^.])", name)
    if found is None:
        return name, "", ""
    return name[: found.start()], found[0], name[found.end() :]


def _not_behind(names: Iterable[str], everyone: Sequence[str]) -> str:
    """Lookbehinds for what stands before a name in a longer one that ends alike ("decoder." in decoder.layers.0.fc)."""
    prefixes = {other.removesuffix(n) for n in names for other in everyone if other.endswith(f".{n}")}
    return "".join(f"(?<!{re.escape(p)})" for p in sorted(prefixes))


def _whole(alpha: float) -> int:
    # peft says int and takes any number; rounding would change the scale.
    return int(alpha) if float(alpha).is_integer() else alpha  # type: ignore[return-value]
