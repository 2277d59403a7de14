"""Part of benchmarks/encoder.py: what is left of networks that the encoders never saw, at a global budget over
neurons, channels, heads and layers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from allocation import MeasuredAllocation
from torch import nn

from dnge_compress import scorers
from dnge_compress.encoder import DNGEncoder
from dnge_compress.graph.counting import non_embedding_prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import Cut, Scores
from dnge_compress.plans.candidates import candidates
from dnge_compress.plans.planner import make_plan
from dnge_compress.plans.problem import Budget
from dnge_compress.plans.trial import repair_values
from dnge_compress.recipes.library import resolve
from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext
from dnge_compress.scorers.encoder import corrected
from dnge_compress.signals.divergence import attended, attended_outputs, divergence
from dnge_compress.signals.inference import Inputs, call, has_logits, inference_mode_of

RATIOS = (0.2, 0.35, 0.5)
Judge = Callable[[nn.Module], tuple[float, ...]]  # log damage first, then the task's own measure
GLOBAL = {"allocation": "global", "uneven": True}


class Subject:
    """One model with its synthetic inputs and its real samples, and all that is computed on them once."""

    def __init__(
        self,
        model: nn.Module,
        real: Sequence[Inputs],
        judge: Judge,
        encoders: Mapping[str, DNGEncoder],
        *,
        example: Inputs | None = None,
        tokens: int = 8192,
        seed: int = 0,
    ) -> None:
        self.model, self.judge, self.encoders = model, judge, encoders
        graph = build_graph(model, example)
        calibration = Calibration(tokens=tokens, seed=seed)
        synthetic = ScoringContext(graph=graph, model=model, calibration=calibration, example_inputs=example)
        self.contexts = {"synthetic": synthetic, "real": replace(synthetic, data=tuple(real))}
        self.budget = Budget.of(model, non_embedding_prices(model, graph))
        self._scores: dict[tuple[str, str], Scores] = {}

    def scores(self, scorer: str, data: str) -> Scores:
        """Scores of a scorer, or of one of the encoders by name."""
        key = (scorer, data)
        if key not in self._scores:
            context = self.contexts[data]
            with torch.no_grad():
                if scorer in self.encoders:
                    found = corrected(context, self.scores("obs", data), self.encoders[scorer])
                else:
                    found = scorers.score(scorer, context)
            self._scores[key] = found
        return self._scores[key]

    @cached_property
    def measured(self) -> MeasuredAllocation:
        """The table of measured damage on synthetic inputs."""
        return MeasuredAllocation(self.contexts["synthetic"], self.scores("obs", "synthetic"))

    def result(self, scorer: str, how: str, data: str, ratio: float) -> tuple[float, ...]:
        """What the judge says of the model under a plan, repaired on the same data; last, the share removed.

        `how`: "uniform" (as `compress` does it), "global" (the scorer's costs alone decide), "global, checked" (as
        `compress` does it: a few global plans and the uniform one, measured on the inputs), "measured" (the table).
        """
        context = self.contexts[data]
        applied = AppliedCuts(context.graph, self._cuts(scorer, how, data, ratio))
        with torch.no_grad():
            judged = self.judge(MaskedModel(self.model, applied, repair_values(context, applied, context.repair)))
        return (*judged, self.budget.removed(applied))

    def _cuts(self, scorer: str, how: str, data: str, ratio: float) -> tuple[Cut, ...]:
        context = self.contexts[data]
        if how == "measured":
            return self.measured.cuts(ratio)
        settings = resolve("prune/default", {"ratio": ratio, **(GLOBAL if how != "uniform" else {})})
        scores = self.scores(scorer, data)
        if how == "global":
            return candidates(context.graph, scores, settings.prune, self.budget)[0][0].applied.cuts
        return make_plan(context, scores, settings).cuts


def log_damage(model: nn.Module, judged: Inputs) -> Judge:
    """Log of the divergence from the whole model's answers on real data, in log nats; lower is better."""
    logits = has_logits(model)
    with torch.no_grad(), inference_mode_of(model):
        reference = attended_outputs(call(model, judged), attended(judged))

    def judge(pruned: nn.Module) -> tuple[float, ...]:
        with torch.no_grad(), inference_mode_of(model):
            output = attended_outputs(call(pruned, judged), attended(judged))
            return (float(divergence(output, reference, logits).clamp_min(1e-9).log()),)

    return judge
