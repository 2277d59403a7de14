"""What to keep of a model, as a value: printed, edited, compared, replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dnge_compress.core.document import Document, Notes, Section
from dnge_compress.core.errors import PlanError
from dnge_compress.core.terminal import Printable
from dnge_compress.core.wording import count, percent, several
from dnge_compress.graph.types import Cut
from dnge_compress.plans.plan_json import plan_values
from dnge_compress.plans.space_rows import SpaceRow, spaces_table


@dataclass(frozen=True, kw_only=True)
class PrunePlan(Printable):
    """What to keep, for which base model, and what is expected of it. Round-trips through JSON; `print(plan)` draws it.

    `params_before` and `params_after` count all parameters; `predicted_cost` is the scorer's sum in nats; `costs` are
    its parts per space, and `rows` say what becomes of each. All of these belong to the cuts that `counted_cuts`
    fingerprints: other ones were edited since. `notes` explain every rounding. `base` fingerprints names and shapes,
    `weights` a sample of the values.
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
    rows: tuple[SpaceRow, ...] = ()
    counted_cuts: str = ""

    VERSION = 1

    def __post_init__(self) -> None:
        names = [c.space for c in self.cuts]
        if len(set(names)) != len(names):
            raise PlanError("a plan holds at most one cut per space")

    @property
    def is_edited(self) -> bool:
        """Whether the cuts are others than those that were counted, so that sizes and costs are unknown."""
        return self.counted_cuts not in ("", fingerprint(self.cuts))

    def keep(self, space: str) -> tuple[int, ...] | None:
        """The kept units of a space, or None if the plan leaves it whole."""
        return next((c.keep for c in self.cuts if c.space == space), None)

    def document(self) -> Document:
        """What will be removed, and why that differs from what was asked."""
        notes = Section("Notes", (Notes(self.notes, "the plan"),))
        cuts = several(len(self.cuts), "cut")
        if self.is_edited or not self.params_before:
            facts = (cuts, "edited: its size is counted when it is applied") if self.is_edited else (cuts,)
            return Document(title="plan", facts=facts, sections=(notes,) if self.notes else ())
        saved = percent(1 - self.params_after / self.params_before)
        return Document(
            title=f"{count(self.params_before)} → {count(self.params_after)} parameters",
            facts=(f"{saved} saved", cuts),
            sections=(Section("Units kept", (spaces_table(self.rows),)), *((notes,) if self.notes else ())),
        )

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
            "counted_cuts": self.counted_cuts,
            "rows": [asdict(row) for row in self.rows],
            "cuts": {c.space: list(c.keep) for c in self.cuts},
        }

    def to_json(self) -> str:
        """JSON text, one line per row and cut, made to be read, diffed and edited."""
        values = self.to_dict()
        cuts, rows = values.pop("cuts"), values.pop("rows")
        head = json.dumps(values, indent=1)[:-2]
        drawn = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in cuts.items())
        return f'{head},\n "rows": [\n{drawn}\n ],\n "cuts": {{\n{lines}\n }}\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> PrunePlan:
        """Read a plan. Raises PlanError naming what is missing or malformed."""
        mark = ("dnge plan", "dnge_plan", cls.VERSION)
        raw = plan_values(text, mark, known=cls.__dataclass_fields__, needed=("base", "weights", "cuts"))
        try:
            cuts = tuple(Cut(str(k), tuple(_index(i) for i in v)) for k, v in raw["cuts"].items())
            rest = {k: v for k, v in raw.items() if k not in ("dnge_plan", "cuts")}
            rest["notes"] = tuple(rest.get("notes", ()))
            rest["rows"] = tuple(SpaceRow(**row) for row in rest.get("rows", ()))
            return cls(cuts=cuts, **rest)
        except (TypeError, AttributeError) as e:
            raise PlanError(f"the plan is malformed: {e}") from None


def fingerprint(cuts: tuple[Cut, ...]) -> str:
    """16 hexadecimal digits that tell these cuts from others."""
    text = json.dumps({cut.space: cut.keep for cut in cuts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(f"a kept unit must be a whole number, not {value!r}")
    return value
