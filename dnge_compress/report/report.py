"""What a compression did: units, parameters, work and bytes, before and after. A Report renders itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from dnge_compress.core.errors import CheckpointError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.report import tables
from dnge_compress.report.rows import Row, Totals, measure, rows_of
from dnge_compress.signals.running import Inputs

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Report:
    """Rows per space, totals and timings in seconds. `print(report)` draws the tables."""

    rows: tuple[Row, ...]
    totals: Totals
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scorer: str = ""
    recipe_name: str = ""
    model_name: str = ""
    predicted_cost: float = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from tables.report(self, console, options)

    def __str__(self) -> str:
        return tables.plain(self)

    def to_markdown(self) -> str:
        """The same tables as Markdown, for a model card."""
        return tables.markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        raw = asdict(self)
        raw["rows"] = [asdict(row) for row in self.rows]
        raw["totals"] = {name: list(change) for name, change in asdict(self.totals).items()}
        raw["timings"], raw["notes"] = dict(self.timings), list(self.notes)
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Report:
        """Read a report. Raises CheckpointError where it is malformed."""
        try:
            totals = {name: (int(change[0]), int(change[1])) for name, change in raw["totals"].items()}
            rest = {
                **raw,
                "rows": tuple(Row(**row) for row in raw["rows"]),
                "totals": Totals(**totals),
                "notes": tuple(raw.get("notes", ())),
            }
            return cls(**rest)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError) as e:
            raise CheckpointError(f"the report is malformed: {type(e).__name__}: {e}") from None


def build_report(
    plan: PrunePlan,
    applied: AppliedCuts,
    *,
    before: nn.Module,
    after: nn.Module,
    inputs: Inputs | None = None,
    timings: Mapping[str, float] | None = None,
) -> Report:
    """Compare a model with what a plan made of it. Work is counted on the first example of `inputs`.

    report = build_report(plan, AppliedCuts(graph, plan.cuts), before=model, after=apply(plan, model), inputs=batch)
    """
    old, new = measure(before, applied.graph, inputs), measure(after, applied.graph, inputs)
    return Report(
        rows=rows_of(applied, plan.costs, old.shapes),
        totals=Totals(
            (old.params, new.params),
            (old.non_embedding_params, new.non_embedding_params),
            (old.macs, new.macs),
            (old.bytes, new.bytes),
        ),
        timings=dict(timings or {}),
        notes=plan.notes,
        scorer=str(plan.recipe.get("scorer", "")),
        recipe_name=str(plan.recipe.get("name", "")),
        model_name=_name_of(before),
        predicted_cost=plan.predicted_cost,
    )


def _name_of(model: nn.Module) -> str:
    path = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return path.rstrip("/").rsplit("/", 1)[-1] or type(model).__name__
