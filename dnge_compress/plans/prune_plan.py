"""What to keep of a model, as a value: printed, edited, compared, replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnge_compress.core.document import Document, Notes, Section
from dnge_compress.core.errors import PlanError
from dnge_compress.core.strict_json import json_values, read_strictly
from dnge_compress.core.terminal import Printable
from dnge_compress.core.wording import count, percent, several
from dnge_compress.graph.types import Cut
from dnge_compress.plans.expected import Expected
from dnge_compress.plans.plan_json import PlanFormat, Values, file_text, plan_text, read_plan
from dnge_compress.plans.sensitivity import Sensitivity
from dnge_compress.plans.space_rows import SpaceRow, spaces_table


@dataclass(frozen=True, kw_only=True)
class PrunePlan(Printable):
    """What to keep, for which base model, and what is expected of it. Round-trips through JSON; `print(plan)` draws it.

    `params_before` and `params_after` count all parameters; `predicted_cost` is the scorer's sum in nats; `costs` are
    its parts per space, and `rows` say what becomes of each; `expected` is what the repaired network will lose on real
    inputs. All of these belong to the cuts that `counted_cuts` fingerprints: other ones were edited since, and what
    they cost is None. `sensitivity` is what the ratio would cost each space alone, whatever is cut. `notes` explain
    every rounding. `base` fingerprints names and shapes, `weights` a sample of the values.
    """

    cuts: tuple[Cut, ...]
    base: str
    weights: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    params_before: int = 0
    params_after: int = 0
    predicted_cost: float | None = 0.0
    expected: Expected | None = None
    uneven: bool = False
    notes: tuple[str, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[SpaceRow, ...] = ()
    counted_cuts: str = ""
    sensitivity: tuple[Sensitivity, ...] = ()

    FORMAT = PlanFormat(key="dnge_plan", version=1, command="dnge plan")

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
            facts=tuple(filter(None, (f"{saved} saved", cuts, str(self.expected or "")))),
            sections=(Section("Units kept", (spaces_table(self.rows),)), *((notes,) if self.notes else ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        cuts = {cut.space: list(cut.keep) for cut in self.cuts}
        return {self.FORMAT.key: self.FORMAT.version, **json_values(self), "cuts": cuts}

    def to_json(self) -> str:
        """JSON text, one line per row and cut, made to be read, diffed and edited."""
        return plan_text(self.to_dict(), "rows", "sensitivity", "cuts")

    @classmethod
    def from_json(cls, text: str, origin: str = "the plan") -> PrunePlan:
        """Read a plan, which errors call `origin`. Raises PlanError naming what is missing or malformed."""

        def arranged(raw: Values) -> Values:
            cuts = read_strictly(Mapping[str, tuple[int, ...]], raw.get("cuts"), f"{origin}.cuts")
            return raw | {"cuts": [{"space": space, "keep": keep} for space, keep in cuts.items()]}

        return read_plan(cls, text, origin, cls.FORMAT, arranged)

    @classmethod
    def read(cls, file: Path) -> PrunePlan:
        """Read the plan in a file. Raises PlanError naming it."""
        return cls.from_json(file_text(file), f"'{file}'")


def fingerprint(cuts: tuple[Cut, ...]) -> str:
    """16 hexadecimal digits that tell these cuts from others."""
    text = json.dumps({cut.space: cut.keep for cut in cuts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
