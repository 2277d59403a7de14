"""How far real damage lies from the damage measured on calibration inputs: whence a plan's band (plans/expected.py).

    python benchmarks/expected_damage.py --zoo zoo     # half an hour of a core; goes on where it was

Networks of the zoo and their early stages, 12.5 to 70 % of the neurons or channels of every layer, the default repair.
Writes results/expected_damage.{md,json}: for each kind of inputs the median of log(real / measured) and the ends of its
middle four fifths, and how many networks that were left out fall into the band of the others.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Sequence

import torch
from harness import keep_rows, kept_rows, markdown, write
from oracles import TOKENS, Network, zoo_asked_for

from dnge_compress.plans.trial import best_repair
from dnge_compress.recipes.schema import Calibration, Repair
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.doubts import kind_of_inputs
from dnge_compress.signals.inference import inference_mode_of
from dnge_compress.signals.masked_text import fill_batches

NAME = "expected_damage"
RATIOS = (0.125, 0.25, 0.375, 0.5, 0.7)
LOWEST = -20  # log damage: below it rounding speaks


def main() -> None:
    """Measure what is missing, and write the table."""
    folders, data_root = zoo_asked_for(__doc__)
    rows = kept_rows(NAME)
    done = {(row["name"], row["kind"]) for row in rows}
    for folder in folders:
        kinds = {kind for name, kind in done if name == folder.name}
        if len(kinds) == (3 if folder.name.startswith("bert") else 2):
            continue
        network = Network(folder, data_root)
        for kind, context in contexts(network):
            if kind not in kinds:
                rows += [{"name": folder.name, "kind": kind, **measured(network, context, ratio)} for ratio in RATIOS]
        keep_rows(NAME, rows)
        print(folder.name, file=sys.stderr, flush=True)
    write(NAME, "Real damage against damage on calibration inputs: log(real / measured)", table(rows))


def contexts(network: Network) -> Iterator[tuple[str, ScoringContext]]:
    """Every kind of inputs that a network can be calibrated on."""
    yield "real", network.real
    made = network.made
    yield kind_of_inputs(network.model, made.batches, made.calibration, made.example_inputs, False), made
    blueprint = network.blueprint
    if blueprint.family == "bert":  # the zoo's tokenizers name no mask
        generator = torch.Generator().manual_seed(0)
        with inference_mode_of(network.model):
            texts = fill_batches(
                network.model, TOKENS // blueprint.length, blueprint.length, 32, ((), ()), blueprint.mask_id, generator
            )
            batches = tuple({"input_ids": ids} for ids in texts)
        yield "masked", ScoringContext(graph=made.graph, model=made.model, calibration=Calibration(), data=batches)


def measured(network: Network, context: ScoringContext, ratio: float) -> dict[str, float]:
    """Log damage on the calibration inputs and on real ones."""
    with torch.no_grad():
        applied = network.cuts(context, ratio)
        repaired = best_repair(context, applied, Repair())
        return {
            "ratio": ratio,
            "measured": math.log(max(repaired.damage.nats, 1e-9)),
            "real": network.damage(applied, repaired.values),
        }


def table(rows: Sequence[dict]) -> list[str]:
    """One line for each kind of inputs."""
    lines = []
    for kind in sorted({row["kind"] for row in rows}):
        mine = [row for row in rows if row["kind"] == kind and row["real"] > LOWEST]
        runs = sorted({_run(row) for row in mine})
        inside = [
            low <= row["real"] - row["measured"] <= high
            for run in runs
            for low, high in [_band([row for row in mine if _run(row) != run])[1:]]
            for row in mine
            if _run(row) == run
        ]
        middle, low, high = _band(mine)
        covered = f"{statistics.mean(inside):.0%}" if len(runs) > 1 else "–"
        lines.append([kind, str(len(runs)), str(len(mine)), f"{middle:+.2f}", f"{low:+.2f} … {high:+.2f}", covered])
    head = ["inputs", "training runs", "plans", "median", "10 … 90 %", "inside the band of the other runs"]
    return markdown(head, lines)


def _run(row: dict) -> str:
    return row["name"].partition("@")[0]


def _band(rows: Sequence[dict]) -> tuple[float, float, float]:
    off = torch.tensor([row["real"] - row["measured"] for row in rows])
    return tuple(torch.quantile(off, torch.tensor([0.5, 0.1, 0.9])).tolist()) if len(off) else (0.0, 0.0, 0.0)


if __name__ == "__main__":
    main()
