"""The measured cost of a cut, and the repair that costs least: the divergence of the masked and repaired model from the
whole one on some inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from dnge_compress.core.memory import give_back
from dnge_compress.core.parts import NOTHING_KEPT, Parts
from dnge_compress.core.strict_json import json_values
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import Cut
from dnge_compress.recipes.schema import Repair
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.comparison import Comparison, Damage
from dnge_compress.signals.divergence import mean_divergence
from dnge_compress.signals.inference import Inputs, has_logits, inference_mode_of, share_of
from dnge_compress.signals.refit import least_squares_repair
from dnge_compress.signals.side_by_side import SideBySide

MEASURE_SHARE = 0.125  # of the calibration inputs
MEASURE_ROWS = 32  # examples at least


def measured_divergence(
    context: ScoringContext, applied: AppliedCuts, batches: Sequence[Inputs], wanted: Sequence[Tensor], repair: Repair
) -> Tensor:
    """Mean divergence from the outputs `wanted`, in nats per label, under cuts repaired on the context's signals.

    The model is left as it is; call it in inference mode.
    """
    masked = MaskedModel(context.model, applied, repair_values(context, applied, repair))
    return mean_divergence(masked, batches, wanted, has_logits(context.model))


@dataclass(frozen=True)
class Trial:
    """A context's model, its answers on what damage is measured on, and the damage that was measured against them:
    whoever tries several plans keeps one. That is what was held out from the fits, if anything was, and else a part of
    the calibration inputs."""

    context: ScoringContext
    _known: dict[tuple[tuple[Cut, ...], Repair], Damage] = field(default_factory=dict)

    @cached_property
    def _whole(self) -> Comparison:
        known = self.context.held_out or share_of(self.context.batches, MEASURE_SHARE, MEASURE_ROWS)
        return Comparison(self.context.model, known)

    @property
    def where(self) -> str:
        """What damage is measured on, for notes."""
        return "held-out examples" if self.context.held_out else "calibration inputs"

    def damage(self, applied: AppliedCuts, values: Mapping[str, Tensor]) -> Damage:
        """The divergence under cuts and new values of the consumers. The model is left as it is."""
        with inference_mode_of(self.context.model):
            return self._whole.damage(MaskedModel(self.context.model, applied, values))

    def one_shot(self, applied: AppliedCuts, repair: Repair, values: Mapping[str, Tensor] | None = None) -> Damage:
        """The damage under cuts and the repair that the signals alone give (`values`, if known); measured once."""
        key = applied.cuts, repair
        if key not in self._known:

            def measured() -> dict[str, Any]:
                known = repair_values(self.context, applied, repair) if values is None else values
                return asdict(self.damage(applied, known))

            self._known[key] = Damage(**parts_under(self.context, applied, repair).facts("measured", measured))
        return self._known[key]


@dataclass(frozen=True)
class Repaired:
    """New values of the consumers, and what each way to repair left of the damage, measured on `where`."""

    values: dict[str, Tensor]
    damages: Mapping[str, Damage]
    where: str = ""

    @property
    def damage(self) -> Damage:
        """What is left under the values."""
        return self.damages[_least(self.damages)] if self.damages else Damage(0.0)

    @property
    def note(self) -> str:
        """What each way to repair left, for the report."""
        ways = "; ".join(f"{way} {damage.nats:.3g}" for way, damage in self.damages.items())
        return f"repair by {_least(self.damages)}: it leaves least damage on {self.where}, in nats: {ways}"


def best_repair(context: ScoringContext, applied: AppliedCuts, repair: Repair, trial: Trial | None = None) -> Repaired:
    """The repair that the recipe asks for, unless a lesser one leaves less damage where that is measured.

    The model is left as it is. `trial` may know some of the damage already.
    """
    if not applied.cuts or repair.compensate == "none":
        return Repaired({}, {})
    bias = repair.model_copy(update={"compensate": "bias"})
    steps = 2 if repair.compensate == "bias" else 4
    context.progress("repair", 0, steps)
    ways: dict[str, dict[str, Tensor]] = {"none": {}}
    moved = repair_values(context, applied, bias)
    if moved.keys() - {s.slot.param for own in context.signals.values() for s in own}:  # something takes up a mean
        ways["bias"] = moved
    context.progress("repair", 1, steps)
    if repair.is_refit:
        one_shot = ways["least squares"] = repair_values(context, applied, repair)
        context.progress("repair", 2, steps)
        parts = parts_under(context, applied, repair)
        run = SideBySide(context.model, context.signals, applied, one_shot, parts=parts, most_joint=repair.most_joint)
        values = _run(run, context)
        ways["joint fit" if run.has_joint_fits else "side by side"] = values
        context.progress("repair", 3, steps)
    trial = trial or Trial(context)
    asked = "bias" if repair.compensate == "bias" else "least squares"
    damages = {
        way: trial.one_shot(applied, repair, values) if way == asked else trial.damage(applied, values)
        for way, values in ways.items()
    }
    context.progress("repair", steps, steps)
    return Repaired(ways[_least(damages)], damages, trial.where)


def _least(damages: Mapping[str, Damage]) -> str:
    return min(damages, key=damages.__getitem__)


def _run(run: SideBySide, context: ScoringContext) -> dict[str, Tensor]:
    with context.calibrated():
        found = run.run(context.batches)
    give_back()
    return found


def repair_values(context: ScoringContext, applied: AppliedCuts, repair: Repair) -> dict[str, Tensor]:
    """New values of the consumers under the cuts; the signals are gathered only if something is repaired."""
    if repair.compensate == "none" or not applied.cuts:
        return {}
    parts = parts_under(context, applied, repair) if repair.is_refit else NOTHING_KEPT
    return least_squares_repair(context.model, context.signals, applied, repair, parts)


def parts_under(context: ScoringContext, applied: AppliedCuts, repair: Repair) -> Parts:
    """The parts of a work that belong to some cuts and a way to repair."""
    if not context.parts.are_kept:
        return context.parts
    told = json.dumps([[json_values(cut) for cut in applied.cuts], repair.model_dump(mode="json")])
    return context.parts.within(hashlib.sha256(told.encode()).hexdigest()[:16])
