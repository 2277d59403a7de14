"""Uniform allocations: the same share of every space, or the widest common width beside dropped layers and heads."""

from __future__ import annotations

import math

from dnge_compress.core.errors import BudgetError
from dnge_compress.graph.counting import price_left
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.types import Cut
from dnge_compress.plans.legal_widths import Block, TiedWidths
from dnge_compress.plans.problem import NOTED_ROUNDING, Candidate, Problem
from dnge_compress.recipes.schema import Prune

HEAD_LEVELS = 4
BISECTIONS = 24


def of_units(problem: Problem, prune: Prune) -> tuple[Candidate, list[str]]:
    """The same share of the units of every space, and notes on rounding; layers count as units of theirs."""
    ratio, most = prune.ratio, 1 - prune.min_keep
    if ratio > most + 1e-9:
        raise problem.unreachable(prune, most)
    steps = {g: g.nearest(1 - ratio) for g in problem.groups}
    wanted = math.floor(ratio * len(problem.droppable) + 0.5)
    dropped = problem.layers[:wanted]
    cuts = problem.cuts(steps, dropped)
    if not cuts:
        raise BudgetError(f"ratio {ratio:g} is too small to remove a single unit under these rules; raise it")
    gone = {(g.kind, problem.graph.space(n).units, g.steps, t) for g, t in steps.items() for n in g.spaces}
    rounded = [
        rounded_note(units - units * t // of, units, f"{kind}s of each layer", ratio)
        for kind, units, of, t in sorted(gone)
    ]
    if problem.droppable:
        rounded.append(rounded_note(len(dropped), len(problem.droppable), "layers", ratio))
    return problem.candidate(cuts), [note for note in rounded if note]


def rounded_note(gone: int, units: int, what: str, ratio: float) -> str:
    """What to say where rounding took the ratio elsewhere; empty where it did not."""
    off = abs(gone / units - ratio) > NOTED_ROUNDING
    return f"ratio {ratio:g} is rounded to {gone} of {units} {what}, the nearest that is allowed" if off else ""


def uniform(problem: Problem, prune: Prune) -> list[Candidate]:
    """All splits over layers, heads and widths that reach the ratio, none removing a whole kind for nothing."""
    widths = [g for g in problem.groups if g.kind != "head"]
    heads = [g for g in problem.groups if g.kind == "head"]
    found, best = [], 0.0
    for drops in range(len(problem.layers) + 1):
        dropped = problem.layers[:drops]
        alone = False
        for level in _head_levels(heads, bool(widths)):
            fixed = {g: g.at_most(level) for g in heads}
            cuts, reached = _fit_width(problem, widths, fixed, dropped, prune.ratio)
            best = max(best, reached)
            if reached >= prune.ratio - 1e-9:
                found.append(problem.candidate(cuts))
                alone = alone or (level == 1.0 and not any(c.space in g.spaces for g in widths for c in cuts))
        if alone:  # the layers alone suffice: dropping more only overshoots
            needed = _needed(problem, dropped, prune.ratio)
            found += [problem.candidate(problem.layer_cuts(needed))] if len(needed) < len(dropped) else []
            break
    if not found:
        raise problem.unreachable(prune, best)
    # Coarse units (layers, heads) may overshoot; a plan is only worth looking at if it removes about what was asked.
    least = min(c.removed for c in found)
    return sorted((c for c in found if c.removed <= least + 0.02), key=lambda c: c.cost)


def _needed(problem: Problem, dropped: list[Block], ratio: float) -> list[Block]:
    """Of dropped blocks those without which the ratio isn't reached, as blocks of other sizes may have made the
    first ones needless; the dearest stay first."""
    needed = list(dropped)
    for block in reversed(dropped):
        fewer = [b for b in needed if b != block]
        if _fit_width(problem, [], {}, fewer, ratio)[1] >= ratio - 1e-9:
            needed = fewer
    return needed


def _head_levels(heads: list[TiedWidths], widths: bool) -> list[float]:
    """Fractions of heads to try: the widest few and the narrowest; all of them if no width can make up the rest."""
    if not heads:
        return [1.0]
    fractions = sorted({t / heads[0].steps for t in heads[0].legal}, reverse=True)
    return [*fractions[:HEAD_LEVELS], *fractions[HEAD_LEVELS:][-1:]] if widths else fractions


def _fit_width(
    problem: Problem, widths: list[TiedWidths], fixed: dict[TiedWidths, int], dropped: list[Block], ratio: float
) -> tuple[tuple[Cut, ...], float]:
    """The widest common fraction of the width groups with which the ratio is reached, beside fixed heads and layers."""
    prefixes = AppliedCuts(problem.graph, problem.layer_cuts(dropped)).dropped_prefixes

    def steps(fraction: float) -> dict[TiedWidths, int]:
        return fixed | {g: g.at_most(fraction) for g in widths}

    def removed(fraction: float) -> float:
        kept = {n: problem.graph.space(n).units * t // g.steps for g, t in steps(fraction).items() for n in g.spaces}
        left = price_left(problem.graph, problem.budget.prices, problem.budget.shapes, kept, prefixes)
        return 1 - left / problem.budget.whole

    low, high = 0.0, 1.0
    if not widths or removed(high) >= ratio:
        low = high
    elif removed(low) >= ratio:
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if removed(middle) >= ratio else (low, middle)
    return problem.cuts(steps(low), dropped), removed(low)
