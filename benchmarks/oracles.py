"""What would perfect knowledge be worth? Ceilings for all that an encoder could be taught to decide about a repair.

    python benchmarks/oracles.py --zoo zoo     # half an hour of a core; goes on where it was; writes results/oracles.*

Networks of the zoo, neurons or channels, no data: log damage on held-out real inputs, mean over 25, 37.5 and 50 %
(global plans: over 20 and 35 % of the parameters); lower is better. An oracle looks at the real damage itself, or at
moments of 256 real inputs. Where it gains little over the best constant, nothing can be learned.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from harness import keep_rows, kept_rows, markdown, over_seeds, write
from torch import Tensor

from dnge_compress import scorers
from dnge_compress.graph.counting import non_embedding_prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import Cut
from dnge_compress.plans.candidates import candidates
from dnge_compress.plans.problem import Budget
from dnge_compress.plans.trial import best_repair, repair_values
from dnge_compress.recipes.library import resolve
from dnge_compress.recipes.schema import Calibration, Repair
from dnge_compress.scorers import ScoringContext, obs
from dnge_compress.signals.divergence import mean_divergence, outputs_of
from dnge_compress.signals.inference import has_logits, inference_mode_of
from dnge_compress.signals.refit import least_squares_repair
from dnge_compress.signals.signal import Signal, Signals
from dnge_compress.zoo import build as zoo
from dnge_compress.zoo.batches import example_batches
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.pretrain.train import has_learned

NAME = "oracles"
RATIOS, GLOBAL_RATIOS = (0.25, 0.375, 0.5), (0.2, 0.35)
RIDGES = (0.0003, 0.003, 0.03, 0.3)
SHARES = (0.0, 0.5, 1.0)  # of the log ratio of real to synthetic variance
TOKENS, ROWS = 8192, 256


class Network:
    """One network of the zoo with its synthetic and real inputs."""

    def __init__(self, folder: Path, data_root: DataRoot) -> None:
        self.model, blueprint = zoo.load(folder, data_root=data_root)
        self.blueprint = blueprint
        judged = example_batches(blueprint, "held-out", count=1, batch_size=ROWS, seed=505, data_root=data_root)
        self.judged = judged[0].inputs
        count = (TOKENS // blueprint.length if blueprint.is_language else ROWS) // 32
        real = example_batches(blueprint, "train", count=count, batch_size=32, seed=404, data_root=data_root)
        example = self.judged if isinstance(self.judged, Tensor) else None
        graph = build_graph(self.model, None if example is None else example[:2])
        calibration = Calibration(tokens=TOKENS)
        self.made = ScoringContext(graph=graph, model=self.model, calibration=calibration, example_inputs=example)
        self.real = replace(self.made, data=tuple(batch.inputs for batch in real))
        with torch.no_grad(), inference_mode_of(self.model):
            self.wanted = [outputs_of(self.model, self.judged)]

    def cuts(self, context: ScoringContext, ratio: float) -> AppliedCuts:
        """The same share of every space, by OBS on a context's inputs."""
        found = []
        for space in context.graph.of_kind("neuron", "channel"):
            costs = obs.unit_costs(context, space.name)
            keep = costs.topk(max(1, round((1 - ratio) * len(costs)))).indices
            found.append(Cut(space.name, tuple(sorted(keep.tolist()))))
        return AppliedCuts(context.graph, tuple(found))

    def damage(self, applied: AppliedCuts, values: dict[str, Tensor]) -> float:
        """Log damage on the held-out real inputs."""
        with torch.no_grad(), inference_mode_of(self.model):
            masked = MaskedModel(self.model, applied, values)
            found = mean_divergence(masked, [self.judged], self.wanted, has_logits(self.model))
        return float(found.clamp_min(1e-9).log())


def measured(network: Network) -> dict[str, float]:
    """Every arm on one network."""
    made, real = network.made, network.real
    rows: dict[str, list[float]] = {}

    def add(arm: str, value: float) -> None:
        rows.setdefault(arm, []).append(value)

    for ratio in RATIOS:
        applied = network.cuts(made, ratio)
        add("as it is", network.damage(applied, best_repair(made, applied, Repair()).values))
        add("real inputs choose and repair", _whole(network, real, network.cuts(real, ratio)))
        add("real inputs repair", _whole(network, real, applied))
        ridges = [network.damage(applied, best_repair(made, applied, Repair(ridge=r)).values) for r in RIDGES]
        for ridge, value in zip(RIDGES, ridges, strict=True):
            add(f"ridge {ridge}", value)
        add("ridge, oracle", min(ridges))
        ways = [repair_values(made, applied, Repair(compensate=c)) for c in ("none", "bias", "lstsq")]
        add("way to repair, oracle", min(network.damage(applied, v) for v in ways))
        add("one shot", network.damage(applied, ways[-1]))
        shifted = [
            network.damage(
                applied, least_squares_repair(made.model, _shifted(made.signals, real.signals, s), applied, Repair())
            )
            for s in SHARES
        ]
        for share, value in zip(SHARES, shifted, strict=True):
            add(f"one shot, true variances by {share:g}", value)
        add("one shot, share of true variances, oracle", min(shifted))
    found = {arm: statistics.mean(values) for arm, values in rows.items()}
    found |= _global(network)
    found["way to repair, oracle"] = min(found["way to repair, oracle"], found["as it is"])
    return found


def _whole(network: Network, context: ScoringContext, applied: AppliedCuts) -> float:
    return network.damage(applied, best_repair(context, applied, Repair()).values)


def _global(network: Network) -> dict[str, float]:
    """Plans under one budget for all layers, by costs of three kinds; the repair is the same, without data."""
    graph, model = network.made.graph, network.model
    budget = Budget.of(model, non_embedding_prices(model, graph))
    rows: dict[str, list[float]] = {}
    for arm, scorer, context in (
        ("global, OBS", "obs", network.made),
        ("global, encoder", "encoder", network.made),
        ("global, OBS on real inputs", "obs", network.real),
    ):
        scores = scorers.score(scorer, context)
        for ratio in GLOBAL_RATIOS:
            settings = {"ratio": ratio, "allocation": "global", "uneven": True, "kinds": ("neuron", "channel")}
            plan = candidates(graph, scores, resolve("prune/default", settings).prune, budget)[0][0]
            rows.setdefault(arm, []).append(_whole(network, network.made, plan.applied))
    return {arm: statistics.mean(values) for arm, values in rows.items()}


def _shifted(made: Signals, real: Signals, share: float) -> Signals:
    """Synthetic moments whose variances and means lie between their own and the real ones."""

    def shift(own: Signal, true: Signal) -> Signal:
        ratio = true.covariance.diagonal().clamp_min(1e-9) / own.covariance.diagonal().clamp_min(1e-9)
        scale = ratio.clamp(1e-3, 1e3) ** (share / 2)
        mean = own.mean + share * (true.mean - own.mean)
        return replace(own, covariance=own.covariance * scale[:, None] * scale, mean=mean)

    return {n: tuple(map(shift, found, real[n])) for n, found in made.items()}


def main() -> None:
    """Measure what is missing, and write the table."""
    folders, data_root = zoo_asked_for(__doc__)
    rows = kept_rows(NAME)
    for folder in folders:
        if "@" in folder.name or folder.name in {r["name"] for r in rows} or not has_learned(folder):
            continue
        try:
            with torch.no_grad():
                rows.append({"name": folder.name, **measured(Network(folder, data_root))})
        except torch.linalg.LinAlgError as e:
            print(folder.name, e, file=sys.stderr)
            continue
        keep_rows(NAME, rows)
        print(folder.name, file=sys.stderr, flush=True)
    write(NAME, "What perfect knowledge would be worth (log damage, no data)", table(rows))


def zoo_asked_for(description: str | None) -> tuple[list[Path], DataRoot]:
    """The networks of the zoo that the command line names, for a run in one thread, and where their data are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    return zoo.finished(options.zoo), DataRoot.find(cache=options.zoo / "cache")


def table(rows: Sequence[dict]) -> list[str]:
    """Gains over what the arm is compared with, by family and in all."""
    constant = min(RIDGES, key=lambda r: statistics.mean(row[f"ridge {r}"] for row in rows))
    share = min(SHARES, key=lambda s: statistics.mean(row[f"one shot, true variances by {s:g}"] for row in rows))
    compared: dict[str, tuple[str, str]] = {
        "real inputs for choice and repair": ("real inputs choose and repair", "as it is"),
        "real inputs for the repair": ("real inputs repair", "as it is"),
        f"ridge, oracle over the best constant ({constant:g})": ("ridge, oracle", f"ridge {constant}"),
        "way to repair, oracle over the one that is measured best on synthetic inputs": (
            "way to repair, oracle",
            "as it is",
        ),
        "true variances, by the best constant share": (f"one shot, true variances by {share:g}", "one shot"),
        "true variances, share by oracle": ("one shot, share of true variances, oracle", "one shot"),
        "global plan: OBS on real inputs over OBS": ("global, OBS on real inputs", "global, OBS"),
        "global plan: encoder over OBS": ("global, encoder", "global, OBS"),
    }
    families = sorted({row["name"].split("-")[0] for row in rows})
    lines = []
    for title, (arm, base) in compared.items():
        gains = {row["name"]: row[arm] - row[base] for row in rows}
        cells = [statistics.mean(g for name, g in gains.items() if name.startswith(f)) for f in families]
        lines.append([title, over_seeds(list(gains.values()), 3), *(f"{cell:+.2f}" for cell in cells)])
    head = ["what is known", f"all {len(rows)} networks, ± 95 % interval", *families]
    return markdown(head, lines)


if __name__ == "__main__":
    main()
