"""What to keep of a model, as a value: printed, edited, compared, replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dnge_compress.core.errors import PlanError
from dnge_compress.graph.types import Cut
from dnge_compress.plans.plan_json import plan_values


@dataclass(frozen=True)
class PrunePlan:
    """What to keep, for which base model, and what is expected of it. Round-trips through JSON.

    `params_before` and `params_after` count all parameters; `predicted_cost` is the scorer's sum in nats;
    `notes` explain every rounding; `base` fingerprints names and shapes, `weights` a sample of the values.
    """

    cuts: tuple[Cut, ...]
    base: str
    weights: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    params_before: int = 0
    params_after: int = 0
    predicted_cost: float = 0.0
    uneven: bool = False
    notes: tuple[str, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)

    VERSION = 1

    def __post_init__(self) -> None:
        names = [c.space for c in self.cuts]
        if len(set(names)) != len(names):
            raise PlanError("a plan holds at most one cut per space")

    def keep(self, space: str) -> tuple[int, ...] | None:
        """The kept units of a space, or None if the plan leaves it whole."""
        return next((c.keep for c in self.cuts if c.space == space), None)

    def preview(self, model: nn.Module, example_inputs: Any = None) -> nn.Module:
        """The base model under this plan, without surgery or repair: call it as the model. Nothing is changed.

        `example_inputs` lets a plain module be traced. Raises PlanError for a model the plan wasn't made for.

            damaged = plan.preview(model)(**inputs)
        """
        # The only import that points upwards, here so that plans stay plain values: a preview is the plan's own verb.
        from dnge_compress import preview

        return preview(self, model, example_inputs)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {
            "dnge_plan": self.VERSION,
            "base": self.base,
            "weights": self.weights,
            "recipe": dict(self.recipe),
            "params_before": self.params_before,
            "params_after": self.params_after,
            "predicted_cost": self.predicted_cost,
            "uneven": self.uneven,
            "notes": list(self.notes),
            "costs": dict(self.costs),
            "cuts": {c.space: list(c.keep) for c in self.cuts},
        }

    def to_json(self) -> str:
        """JSON text, one line per cut, made to be read, diffed and edited."""
        body = self.to_dict()
        cuts = body.pop("cuts")
        head = json.dumps(body, indent=1)[:-2]
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in cuts.items())
        return f'{head},\n "cuts": {{\n{lines}\n }}\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> PrunePlan:
        """Read a plan. Raises PlanError naming what is missing or malformed."""
        mark = ("dnge plan", "dnge_plan", cls.VERSION)
        raw = plan_values(text, mark, known=cls.__dataclass_fields__, needed=("base", "weights", "cuts"))
        try:
            cuts = tuple(Cut(str(k), tuple(_index(i) for i in v)) for k, v in raw["cuts"].items())
            rest = {k: v for k, v in raw.items() if k not in ("dnge_plan", "cuts")}
            rest["notes"] = tuple(rest.get("notes", ()))
            return cls(cuts=cuts, **rest)
        except (TypeError, AttributeError) as e:
            raise PlanError(f"the plan is malformed: {e}") from None


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(f"a kept unit must be a whole number, not {value!r}")
    return value
