"""The repair: after units are chosen, refit every matrix that read them, so that its output stays what it was.

`lstsq` refits the kept columns by ridge least squares on the signals' moments (centred where a bias, or the batch
norm behind a conv, can take up the mean), and `joint` begins with that; `bias` only moves the mean of what was removed
there; `none` does neither.
Solved in float64 whatever the model's dtype, but for layers so wide that this would take gigabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from dnge_compress.core.memory import page_out
from dnge_compress.core.paging import Shelf
from dnge_compress.core.parts import NOTHING_KEPT, Parts
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.recipes.schema import Repair
from dnge_compress.signals.consumers import from_matrix, shift_of
from dnge_compress.signals.obs import WIDE, features_of, refit
from dnge_compress.signals.signal import Signal, Signals


def least_squares_repair(
    model: nn.Module, signals: Signals, applied: AppliedCuts, repair: Repair, parts: Parts = NOTHING_KEPT
) -> dict[str, Tensor]:
    """New values of the dense model's consumers under cuts: weights with zeros in the removed columns, and shifts.
    `parts` keep what is finished.

    The model is not touched; `apply_repair` writes them after surgery, MaskedModel shows the result.
    """
    values: dict[str, Tensor] = {}
    shelf, open_parts = Shelf("repaired weights"), Counter(s.slot.param for own in signals.values() for s in own)
    done: set[tuple[str, int | None, int | None]] = set()
    weights = model.state_dict(keep_vars=True)
    for cut in applied.cuts:
        if cut.space not in signals or cut.space in applied.dropped_spaces:
            continue
        for signal in signals[cut.space]:
            param, part = signal.slot.param, signal.slot.part
            share = None if signal.rows is None else signal.rows.start
            if (param, part, share) in done or param.startswith(applied.dropped_prefixes):
                continue
            done.add((param, part, share))
            name = ".".join(str(word) for word in ("refit", param, part, share) if word is not None)
            refitted = partial(_refit_consumer, weights, applied, signal, repair)
            found: Mapping[str, Tensor] = parts.tensors(name, refitted)
            page_out(signal.covariance)
            if part is not None:
                stack = values[param] if param in values else weights[param].detach().clone()
                stack[part] = found[param]
                found = {param: stack}
            elif signal.rows is not None:
                found = {n: _with_rows(values.get(n, weights[n]), signal.rows, own) for n, own in found.items()}
            values |= found
            open_parts[param] -= 1
            if not open_parts[param] or (part is None and signal.rows is None):  # no other part is to come
                values[param] = shelf.keep(values[param])
    return values


def kept_features(applied: AppliedCuts, signal: Signal, original: Tensor) -> Tensor:
    """Which of a consumer's features stay `[K]`, `original` its parameter."""
    slot, rows = signal.slot, original.shape[signal.slot.axis]
    kept = applied.rows_kept(slot.param, slot.axis, rows, slot.part).to(signal.weight.device)
    return features_of(kept, signal.weight.shape[1] // rows)


def _with_rows(whole: Tensor, rows: slice, values: Tensor) -> Tensor:
    whole = whole.detach().clone()
    whole[rows] = values
    return whole


def _refit_consumer(
    weights: Mapping[str, Tensor], applied: AppliedCuts, signal: Signal, repair: Repair
) -> dict[str, Tensor]:
    param = signal.slot.param
    exact = torch.float64 if signal.weight.shape[1] <= WIDE else torch.float32
    original, dense = weights[param].detach(), signal.weight.to(exact)
    keep = kept_features(applied, signal, original)
    mean = signal.mean.to(exact)
    shift = shift_of(applied.graph, signal.slot)
    if repair.is_refit:
        kept = refit(dense, signal.second_moments(shift is not None), keep, repair.ridge)
    else:
        kept = dense[:, keep]
    new = torch.zeros_like(dense)
    new[:, keep] = kept
    values = {param: from_matrix(new, original, applied.graph, signal.slot).to(original.dtype)}
    if shift is not None:
        name, sign = shift
        before = weights[name].detach().to(exact)[signal.rows or slice(None)]
        values[name] = (before + sign * (dense @ mean - kept @ mean[keep])).to(weights[name].dtype)
    return values
