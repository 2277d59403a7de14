"""The strongest rival, and the bookkeeping of the benchmarks: a weakened rival or a mixed-up row would flatter us."""

from __future__ import annotations

import itertools

import pytest
import torch
from allocation import MeasuredAllocation
from models import example_inputs, graph_of, make

from dnge_compress import scorers
from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.calibration import synthesize


@pytest.fixture(scope="module", params=["llama", "mlp", "resnet_basic"])
def table(request: pytest.FixtureRequest) -> MeasuredAllocation:
    name = request.param
    model = make(name)
    example = example_inputs(name)
    batches = synthesize(
        model, Calibration(tokens=64, length=16), example if isinstance(example, torch.Tensor) else None
    )
    context = ScoringContext(graph=graph_of(name, model), model=model, data=tuple(batches[:2]))
    with torch.no_grad():
        return MeasuredAllocation(context, scorers.score("obs", context))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_the_measured_table_reaches_the_ratio_and_keeps_a_block(table: MeasuredAllocation, ratio: float) -> None:
    cuts = table.cuts(ratio)
    assert ratio - 1e-9 <= table._removed(cuts) < ratio + 0.2
    assert all(cut.keep for cut in cuts) and len({cut.space for cut in cuts}) == len(cuts)


def test_the_knapsack_finds_what_trying_everything_finds(table: MeasuredAllocation) -> None:
    options = [choices[:4] for choices in table.options[:4]]
    table.options, kept = options, table.options
    try:
        most = sum(max(price for _, price, _ in choices) for choices in options)
        found = table._solve(0.4 * most)
        assert found is not None
        best = min(
            sum(damage for damage, _, _ in pick)
            for pick in itertools.product(*options)
            if sum(round(price * 400) for _, price, _ in pick) >= 0.4 * most * 400
            and table._is_legal(tuple(c for _, _, cuts in pick for c in cuts))
        )
        assert found[0] == pytest.approx(best, rel=1e-6)
    finally:
        table.options = kept


def test_a_ratio_out_of_reach_is_no_free_win(table: MeasuredAllocation) -> None:
    with pytest.raises(SystemExit, match="no way to remove"):
        table.cuts(0.999)
