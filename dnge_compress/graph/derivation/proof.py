"""The proof: a small random copy, cut and loaded into the smaller architecture, computes what the masked one does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnge_compress.graph.derivation.architecture import Architecture, BuildError, reason_of
from dnge_compress.graph.derivation.config_keys import changed
from dnge_compress.graph.derivation.example_inputs import run
from dnge_compress.graph.derivation.readings import Axis, Counted
from dnge_compress.graph.derivation.units import call_with
from dnge_compress.graph.rows import Runs, rows_of

TOLERANCE = 1e-4  # relative to the largest output
MOST_DRAWN = 20  # times, until a choice of units is another than those of other spaces
MOST_CHOICES = 8  # that two spaces are told apart by
LEAST_EFFECT = 1e-3  # of the mask on the outputs, relative: below it a proof shows nothing


@dataclass(frozen=True)
class Tied:
    """One space that may be: the axes that go together, one choice of units for all of them.

    Its own units are `share` times as many as those that the config counts.
    """

    consumers: tuple[Axis, ...]
    rows: Mapping[Axis, Runs]
    share: int = 1


@dataclass(frozen=True)
class Outcome:
    """Whether a proof succeeded; if not, why."""

    holds: bool
    why: str = ""


def prove(
    architecture: Architecture,
    config: Mapping[str, Any],
    model: nn.Module,
    inputs: dict[str, Tensor],
    counted: Counted,
    spaces: Sequence[Tied],
) -> Outcome:
    """Cut a random choice of units from every space, each its own, to one common number that the config can say."""
    outcome = Outcome(False, "no smaller number builds")
    tried = 0
    for keep in _counts(counted):
        smaller = changed(config, counted.values(keep))
        outline = architecture.outline(smaller)
        if outline is None:
            continue
        for units in choices(counted, keep, [s.share for s in spaces]):
            outcome = _prove_one(architecture, smaller, model, inputs, spaces, units)
            if not outcome.holds:
                break
        tried += 1
        if outcome.holds or tried == 2:
            break
    return outcome


def _counts(counted: Counted) -> list[int]:
    units, step = counted.units, counted.groups
    odd = (units // 2) | 1
    options = [units // 2, odd, units - step, units // 4, 1]
    return list(dict.fromkeys(n for n in options if 0 < n < units and n % step == 0))


def _prove_one(
    architecture: Architecture,
    smaller: Mapping[str, Any],
    model: nn.Module,
    inputs: dict[str, Tensor],
    spaces: Sequence[Tied],
    units: Sequence[Sequence[int]],
) -> Outcome:
    state = {n: t.detach() for n, t in model.state_dict().items()}
    gone: dict[Axis, set[int]] = {}
    for space, own in zip(spaces, units, strict=True):
        for place, runs in space.rows.items():
            gone.setdefault(place, set()).update(rows_of(runs, own))
    masked: dict[str, Tensor] = {}
    for space in spaces:
        for name, axis in space.consumers:
            masked[name] = masked.get(name, state[name]).index_fill(axis, torch.tensor(sorted(gone[name, axis])), 0.0)
    cut = dict(state)
    for (name, axis), rows in gone.items():
        stay = torch.tensor([r for r in range(state[name].shape[axis]) if r not in rows])
        cut[name] = cut[name].index_select(axis, stay)
    return equal_outputs(architecture, smaller, model, inputs, masked, cut)


def equal_outputs(
    architecture: Architecture,
    smaller: Mapping[str, Any],
    model: nn.Module,
    inputs: dict[str, Tensor],
    masked: Mapping[str, Tensor],
    cut: Mapping[str, Tensor],
    *,
    within: AbstractContextManager[Any] | None = None,
) -> Outcome:
    """Whether the smaller architecture with the cut weights answers as the model does with the masked ones, `within` a
    context that masks more."""
    with torch.no_grad():
        dense = run(model, inputs)
        with within or nullcontext():
            expected = call_with(model, inputs, masked)
        try:
            small = architecture.empty(smaller)
            small.load_state_dict(dict(cut), strict=True)
            actual = run(small, inputs)
        except BuildError as e:
            return Outcome(False, str(e))
        except Exception as e:  # whatever a model raises when sizes don't fit is the answer "no"
            return Outcome(False, reason_of(e))
    return compared(dense, expected, actual)


def compared(dense: list[Tensor], expected: list[Tensor], actual: list[Tensor]) -> Outcome:
    """Equal, and not because the mask does nothing."""
    if not [t.shape for t in dense] == [t.shape for t in expected] == [t.shape for t in actual]:
        return Outcome(False, "the outputs have other shapes")
    pairs = [(e, a, d) for e, a, d in zip(expected, actual, dense, strict=True) if e.dim() > 1]
    for e, a, _ in pairs:
        if not float((e - a).abs().amax()) <= TOLERANCE * float(e.abs().amax()):
            return Outcome(False, f"not equal: {float((e - a).abs().amax() / e.abs().amax().clamp_min(1e-12)):.1e}")
    effect = max((float((e - d).abs().amax() / d.abs().amax().clamp_min(1e-12)) for e, _, d in pairs), default=0.0)
    if effect < LEAST_EFFECT:
        return Outcome(False, f"removing the units changes nothing that can be measured ({effect:.0e})")
    return Outcome(True)


def choices(counted: Counted, keep: int, shares: Sequence[int]) -> Iterator[list[list[int]]]:
    """Units to remove from every space, as many from each group, drawn anew until no two spaces or groups have lost the
    same each time: equal choices prove nothing about spaces that hang together."""
    chance = random.Random(0)
    groups = range(counted.groups)
    alike = set(itertools.combinations(range(len(shares) * len(groups)), 2))
    for _ in range(MOST_CHOICES):
        parts: list[list[int]] = []
        for share in shares:
            size, left = share * counted.units // len(groups), share * keep // len(groups)
            for _ in groups:
                taken = [part for i, part in enumerate(parts) if (i, len(parts)) in alike]
                parts.append(_drawn(chance, size, size - left, taken))
        yield [
            [g * (share * counted.units // len(groups)) + u for g in groups for u in parts[i * len(groups) + g]]
            for i, share in enumerate(shares)
        ]
        alike = {(i, j) for i, j in alike if parts[i] == parts[j]}
        if not alike:
            return


def _drawn(chance: random.Random, size: int, count: int, taken: list[list[int]]) -> list[int]:
    for _ in range(MOST_DRAWN):
        units = sorted(chance.sample(range(size), count))
        if units not in taken:
            break
    return units
