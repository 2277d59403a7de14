"""The strongest rival, and the bookkeeping of the benchmarks: a weakened rival or a mixed-up row would flatter us."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import architectures
import dng_tuning
import harness
import independent
import pytest
import recovery
import torch
from allocation import MeasuredAllocation
from harness import Table
from models import example_inputs, graph_of, make
from strangers import Stranger

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


def test_arms_of_a_recovery_are_taken_by_name_and_a_name_of_none_is_told() -> None:
    assert list(recovery.arms_named("")) == list(recovery.ARMS)
    assert list(recovery.arms_named("on both; of all weights on; magnitude, all")) == [
        "prune-recover of all weights on real books",
        "prune-recover on both",
        "magnitude, all weights on real books",
    ]
    with pytest.raises(SystemExit, match="'alone' is in the name of no arm; they are: prune-recover on its own"):
        recovery.arms_named("on both;alone")


def test_a_stranger_lacks_something_until_texts_begun_by_its_users_are_measured_too() -> None:
    def opened() -> Stranger:
        raise AssertionError("opened")

    table = Table("of a test", "", independent.RATIOS)
    for name in ("IgLM-S (GPT-2)", "ResNet-20"):
        for kind, arms in independent._arms().items():
            table.rows |= {(name, *arm, independent.DATA[kind]): {0: [0.1] * 4} for arm in arms}
    independent.measure(table, "ResNet-20", opened, 1)
    with pytest.raises(AssertionError, match="opened"):
        independent.measure(table, "IgLM-S (GPT-2)", opened, 1)
    table.rows[("IgLM-S (GPT-2)", *independent.PROMPTED, independent.DATA["prompted"])] = {0: [0.1] * 4}
    independent.measure(table, "IgLM-S (GPT-2)", opened, 1)


def test_a_model_is_kept_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, known = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), {"arm": "a"}
    save = dng_tuning.save_model

    def stopped(model: torch.nn.Module, file: str, told: dict[str, str]) -> None:
        save(model, file, told)
        raise KeyboardInterrupt

    monkeypatch.setattr(dng_tuning, "save_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        dng_tuning.kept_or_learned(first, known, tmp_path, lambda: {"head": 1.5})
    monkeypatch.setattr(dng_tuning, "save_model", save)
    assert dng_tuning.kept_or_learned(first, known, tmp_path, lambda: {"head": 2.5}) == {"head": 2.5}
    assert dng_tuning.kept_or_learned(second, known, tmp_path, lambda: {"head": 9.0}) == {"head": 2.5}
    assert torch.equal(first.weight, second.weight)


def test_a_recovery_says_how_far_rivals_are_from_ours_on_the_same_seeds() -> None:
    def runs(*values: float) -> list[dict[str, Any]]:
        return [{"seed": seed, "perplexity": {"trained": value}} for seed, value in enumerate(values)]

    ours, rival = "prune-recover on real books", "magnitude, all weights on real books"
    found = recovery.against_ours({ours: runs(69.0, 69.1, 69.2), rival: runs(69.4, 69.6, 69.5)})
    # Differences of .4, .5 and .3: a mean of .4, and 4.303 times .1 / sqrt(3) on either side.
    assert found == [f"- {rival}: +0.40 (+0.15 to +0.65, 3 seeds) against {ours}", ""]
    assert recovery.against_ours({rival: runs(69.4, 69.6)}) == []


def test_the_readme_shows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = harness.README.read_text(encoding="utf-8")
    monkeypatch.setattr(harness, "README", tmp_path / "README.md")
    emptied = re.sub(r"(<!-- (\w+):start -->\n).*?(<!-- \2:end -->)", r"\1\3", shown, flags=re.DOTALL)
    assert emptied.count(":start -->\n<!-- ") == 3
    harness.README.write_text(emptied, encoding="utf-8")
    jobs, tried = (json.loads((harness.RESULTS / f"{name}.json").read_text()) for name in ("jobs", "architectures"))
    harness.put_in_readme("recovery", recovery.summary(jobs["recovery"]))
    harness.put_in_readme("architectures", architectures.summary(tried))
    strangers = json.loads((harness.RESULTS / "independent.json").read_text())
    harness.put_in_readme("strangers", independent.in_readme(harness.read_rows(strangers["rows"])))
    assert harness.README.read_text(encoding="utf-8") == shown
