"""Two plans, the second made for what the first left, as one for the base of the first."""

from __future__ import annotations

from dataclasses import replace

from dnge_compress.core.errors import PlanError
from dnge_compress.graph.types import Cut, ModelGraph
from dnge_compress.plans.prune_plan import PrunePlan, fingerprint
from dnge_compress.plans.space_rows import SpaceRow


def composed(first: PrunePlan, second: PrunePlan, graph: ModelGraph | None = None) -> PrunePlan:
    """The plan that leaves of the base of `first` what `second` leaves of `graph`, whose spaces may have other names;
    without one they have those of the base. Raises PlanError."""
    if graph is not None:
        refuse_uncomposable(first, graph)
    keep = {cut.space: cut.keep for cut in first.cuts}
    for cut in second.cuts:
        before = keep.get(cut.space)
        keep[cut.space] = cut.keep if before is None else tuple(before[i] for i in cut.keep)
    cuts = tuple(Cut(space=space, keep=units) for space, units in keep.items())
    totals = {row.space: row for row in first.rows}
    return replace(
        second,
        cuts=cuts,
        base=first.base,
        weights=first.weights,
        params_before=first.params_before,
        uneven=first.uneven or second.uneven,
        rows=tuple(_row(totals.get(row.space), row) for row in second.rows),
        counted_cuts=fingerprint(cuts),
        notes=(*second.notes, "cuts and sizes are those of the base of several compressions, costs of the last one"),
    )


def refuse_uncomposable(first: PrunePlan, graph: ModelGraph) -> None:
    """Raise PlanError unless the spaces of `graph`, which `first` left, are those that it cut."""
    spaces = {space.name: space for space in graph.spaces}
    for cut in first.cuts:
        left = spaces.get(cut.space)
        if left is None or left.modules or left.units != len(cut.keep):
            raise PlanError(
                f"an earlier compression cut '{cut.space}', which can't be told in one plan with another; compress the "
                "original once, or delete the model's .dnge to go on with what can't be saved"
            )


def _row(before: SpaceRow | None, row: SpaceRow) -> SpaceRow:
    return row if before is None else replace(row, total=before.total, params_before=before.params_before)
