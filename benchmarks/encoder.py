"""Does the pretrained encoder earn its place? Ranking, transfer, ablations, and pruned quality on what it never saw.

    dnge pretrain --zoo zoo --jobs 2 -o runs/base.safetensors     # the zoo and its true costs, hours
    python benchmarks/encoder.py --zoo zoo                            # about an hour and a half on two cores

Writes results/encoder_*.md, and the rows of pruned models as JSON. Every stage can be stopped and started again;
encoders trained on the way are kept in runs/encoder. `--only` runs one part. The real models are those of
benchmarks/real_models.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean as mean

import torch
from encoder_folds import folds, interval
from harness import RESULTS, markdown, write
from pruning import RATIOS, Subject, log_damage
from ranking import VARIANTS, families_left_out, is_whole, trained, transfers
from real import real_models

from dnge_compress.core.errors import BudgetError
from dnge_compress.encoder import DNGEncoder
from dnge_compress.graph.counting import non_embedding_prices
from dnge_compress.graph.types import Scores
from dnge_compress.plans.candidates import candidates
from dnge_compress.plans.problem import Budget
from dnge_compress.recipes.library import resolve
from dnge_compress.zoo import build as zoo
from dnge_compress.zoo.batches import example_batches
from dnge_compress.zoo.blueprint import FAMILIES
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.pretrain.targets import TrainingExample
from dnge_compress.zoo.pretrain.train import STEPS, measure_all

COMPARED = ("encoder", "statistics-only MLP")
ABLATED_SEEDS = (0,)
ARMS = (
    ("random", "uniform", "synthetic"),
    ("magnitude", "uniform", "synthetic"),
    ("magnitude", "global", "synthetic"),
    ("obs", "uniform", "synthetic"),
    ("obs", "global", "synthetic"),
    ("obs", "global, checked", "synthetic"),
    ("obs", "measured", "synthetic"),
    ("statistics-only MLP", "global", "synthetic"),
    ("encoder", "uniform", "synthetic"),
    ("encoder", "global", "synthetic"),
    ("encoder", "global, checked", "synthetic"),
    ("flap", "uniform", "real"),
    ("flap", "global", "real"),
    ("fisher", "global", "real"),
    ("wanda", "uniform", "real"),
    ("taylor", "global", "real"),
)
REAL_ARMS = tuple(a for a in ARMS if a[0] not in ("wanda", "taylor") and a != ("magnitude", "global", "synthetic"))
MEASURES = {"MiniLM": "cosine", "bookworm": "perplexity", "ResNet, CIFAR-10": "accuracy", "ViT, CIFAR-10": "accuracy"}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--work", type=Path, default=Path("runs/encoder"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, for every encoder")
    parser.add_argument("--ablation-steps", type=int, default=STEPS // 4)
    parser.add_argument("--seeds", type=int, default=3, help="0 writes tables of what has been run already")
    parser.add_argument("--each", type=int, default=3, help="networks of a family to prune")
    parser.add_argument("--real", type=Path, default=Path("runs/real"), help="where real_models.py put its models")
    parser.add_argument("--models", nargs="+", choices=tuple(MEASURES), help="real models to prune (default: all)")
    parser.add_argument("--only", choices=("training", "ranking", "ablations", "pruning", "real"))
    parser.add_argument(
        "--seed", type=int, help="with --only training: one seed alone, so that several can run at once"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    data_root = DataRoot.find(cache=options.zoo / "cache")
    examples = cache(lambda: measure_all(options.zoo, data_root))  # a minute or more, and not every part needs them
    if options.only == "ablations":
        ablate(options, examples)
        return
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    encoders = {
        variant: [trained(variant, folds(), examples, options.steps, seed, options.work) for seed in seeds]
        for variant in COMPARED
    }
    if options.only in (None, "ranking"):
        title = "Ranking: Spearman with the true cost over all units, families left out"
        write("encoder_ranking", title, families_left_out(examples(), encoders))
        title = "Transfer: Spearman with the true cost over all units"
        write("encoder_transfer", title, transfers(examples(), encoders))
    if options.only is None:
        ablate(options, examples)
    if options.only in (None, "pruning"):
        prune_all(options, data_root, examples(), encoders)
    if options.only in (None, "real"):
        prune_real(options, data_root, encoders)


def ablate(options: argparse.Namespace, examples: Callable[[], Sequence[TrainingExample]]) -> None:
    """Train every variant for a shorter time, each without one family, and rank that family's networks."""
    parts = [f for f in folds() if f.name.startswith("without")]
    found = {
        v: [trained(v, parts, examples, options.ablation_steps, seed, options.work) for seed in ABLATED_SEEDS]
        for v in VARIANTS
    }
    title = f"Ablations: a quarter of the training ({options.ablation_steps} steps), families left out"
    write("encoder_ablations", title, families_left_out(examples(), found))


def prune_all(
    options: argparse.Namespace,
    data_root: DataRoot,
    examples: Sequence[TrainingExample],
    encoders: dict[str, list[dict[str, DNGEncoder]]],
) -> None:
    """Prune a few networks of every family with every arm, each by encoders that never saw the family."""
    kept = Kept(options.work / f"pruning-{options.steps}.json")
    for family in FAMILIES:
        # A network whose stem and residual stream hold too much can't lose half of its parameters evenly.
        names = [
            x.name for x in examples if x.family == family and is_whole(x) and can_lose(max(RATIOS), x, options.zoo)
        ]
        for name in names[len(names) // (2 * options.each) :: max(1, len(names) // options.each)][: options.each]:
            for seed in range(options.seeds):
                seen = {v: seeds[seed][f"without {family}"] for v, seeds in encoders.items()}
                kept.measure(name, seed, partial(opened, options.zoo / name, data_root, seen, seed), ARMS)
    write(
        "encoder_pruning",
        "Pruning: mean log damage on real data (log nats; lower is better), families left out",
        pruning_table(kept),
    )
    kept.publish("encoder_pruning")


def prune_real(
    options: argparse.Namespace, data_root: DataRoot, encoders: dict[str, list[dict[str, DNGEncoder]]]
) -> None:
    """The real models, by encoders that learned from all families of the zoo; one seed of inputs per encoder seed.

    What decides between obs and the default comes first, for all models and seeds; then the rivals; the
    measured tables last, each of which costs more than all the other arms together.
    """
    kept = Kept(options.work / f"real-{options.steps}.json")
    measured = [arm for arm in REAL_ARMS if arm[1] == "measured"]
    ours = [arm for arm in REAL_ARMS if arm[0] in ("obs", "encoder") and arm not in measured]
    for arms in (ours, [arm for arm in REAL_ARMS if arm not in (*ours, *measured)], measured):
        for seed in range(options.seeds):
            for title, opener in real_models(options.real, options.models or MEASURES).items():
                seen = {v: seeds[seed]["all"] for v, seeds in encoders.items()}
                kept.measure(title, seed, partial(opener, data_root, seen, seed), arms)
    write("encoder_real", "Real models: what is left after pruning at a global budget", real_table(kept))
    kept.publish("encoder_real")


class Kept:
    """Results by model, seed and arm, on disk after every one, so that a run that was stopped goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
        if path.is_file():
            self.rows = json.loads(path.read_text())

    def measure(
        self, model: str, seed: int, open_it: Callable[[], Subject], arms: Sequence[tuple[str, str, str]]
    ) -> None:
        """Run the arms that are missing; those without any chance in them only for the first seed."""
        found = self.rows.setdefault(model, {})
        wanted = [a for a in arms if seed == 0 or (a[2] == "synthetic" and a[0] != "magnitude")]
        missing = [a for a in wanted if str(seed) not in found.get(" · ".join(a), {})]
        if not missing:
            return
        subject = open_it()
        for arm in missing:
            results = [list(subject.result(*arm, ratio)) for ratio in RATIOS]
            found.setdefault(" · ".join(arm), {})[str(seed)] = results
            shown = " ".join(f"{r[0]:.2f}" for r in results)
            print(f"{model}/{seed}  {' · '.join(arm):40s} {shown}", file=sys.stderr, flush=True)
            if arm[1] == "measured":
                found["runs of the table"] = {"0": [[float(subject.measured.runs)]]}
            self._write()
        if model in MEASURES:
            found["whole"] = {"0": [list(subject.judge(subject.model))]}
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".half")
        half.write_text(json.dumps(self.rows))
        half.replace(self.path)

    def publish(self, name: str) -> None:
        """The rows behind a table by model, arm, seed and ratio: log damage, the task's measure, share removed."""
        (RESULTS / f"{name}.json").write_text(json.dumps(self.rows, indent=1))

    def value(self, model: str, arm: str, column: int = 0, ratio: int | None = None) -> float:
        """Mean over seeds, and over ratios unless one is named."""
        runs = self.rows[model][arm].values()
        return mean(r[column] for run in runs for i, r in enumerate(run) if ratio in (None, i))

    def deviation(self, model: str, arm: str) -> float | None:
        """Standard deviation over seeds of the mean log damage."""
        runs = [mean(r[0] for r in run) for run in self.rows[model][arm].values()]
        return statistics.stdev(runs) if len(runs) > 1 else None


def pruning_table(kept: Kept) -> list[str]:
    """Means over ratios and seeds per family, over all, and the paired differences from the plans of obs."""
    by_family = {f: [n for n in kept.rows if n.startswith(f)] for f in FAMILIES}
    by_family = {f: names for f, names in by_family.items() if names}
    bases = {"obs · uniform · synthetic": "− obs, uniform", "obs · global · synthetic": "− obs, global"}
    titles = [f"{title} (95 %)" for title in bases.values()]
    head = ["scorer, plan, inputs", *by_family, "mean", *titles, "families better than both", "removed"]
    table = []
    for arm in (" · ".join(a) for a in ARMS):
        means = {f: mean(kept.value(n, arm) for n in names) for f, names in by_family.items()}
        cells = [*(f"{v:.2f}" for v in means.values()), f"**{mean(means.values()):.2f}**"]
        wins = dict.fromkeys(by_family, True)
        for base in bases:
            gains = {f: [kept.value(n, arm) - kept.value(n, base) for n in names] for f, names in by_family.items()}
            value, low, high = interval(gains)
            cells.append(f"{value:+.2f} ({low:+.2f} … {high:+.2f})" if arm != base else "–")
            wins = {f: won and mean(gains[f]) < 0 for f, won in wins.items()}
        removed = mean(kept.value(n, arm, column=-1) for names in by_family.values() for n in names)
        table.append([arm, *cells, "–" if arm in bases else str(sum(wins.values())), f"{removed:.3f}"])
    runs = mean(kept.value(n, "runs of the table") for names in by_family.values() for n in names)
    names = ", ".join(n for names in by_family.values() for n in names)
    note = f"""\
{", ".join(f"{r:.0%}" for r in RATIOS)} of the non-embedding parameters removed ({mean(RATIOS):.3f} on average);
least-squares repair on the arm's own inputs: synthetic inputs, or 256 real samples. Three seeds of inputs and encoders.
Networks: {names}. The measured table took {runs:.0f} passes over a quarter of the inputs, and as many repairs, for each
network."""
    return [*markdown(head, table), "", note]


def real_table(kept: Kept) -> list[str]:
    """Mean log damage over ratios, and the task's own measure at each ratio; means over the seeds that were run."""
    titles = [title for title in MEASURES if title in kept.rows]
    head = ["scorer, plan, inputs"]
    for title in titles:
        head += [f"{title}: log damage", f"{MEASURES[title]} at {', '.join(f'{r:.0%}' for r in RATIOS)}"]
    table = []
    for arm in (" · ".join(a) for a in REAL_ARMS):
        cells = []
        for title in titles:
            if arm not in kept.rows[title]:
                cells += ["–", "–"]
                continue
            spread, runs = kept.deviation(title, arm), len(kept.rows[title][arm])
            cells.append(f"{kept.value(title, arm):.2f}" + (f" ± {spread:.2f} ({runs})" if spread is not None else ""))
            quality = [kept.value(title, arm, column=1, ratio=i) for i in range(len(RATIOS))]
            cells.append(" / ".join(f"{q:.1f}" if q > 2 else f"{q:.3f}" for q in quality))
        table.append([arm, *cells])
    whole = ", ".join(
        f"{title} {kept.rows[title]['whole']['0'][0][1]:.3f}" for title in titles if "whole" in kept.rows[title]
    )
    note = f"""\
Unpruned: {whole}.
Mean ± deviation over as many seeds of inputs and encoders as stand in brackets;
without brackets it is one. Real: 256 samples, one run. –: not run."""
    return [*markdown(head, table), "", note]


def can_lose(ratio: float, example: TrainingExample, zoo_folder: Path) -> bool:
    """Whether an even plan reaches the ratio, whatever the scores."""
    model, _ = zoo.load(zoo_folder / example.name)
    budget = Budget.of(model, non_embedding_prices(model, example.graph))
    scores = Scores(
        units={n: torch.ones(len(v)) for n, v in example.targets.items()},
        scorer="none",
        fingerprint=example.graph.fingerprint,
    )
    try:
        candidates(example.graph, scores, resolve("prune/default", {"ratio": ratio}).prune, budget)
    except BudgetError:
        return False
    return True


def opened(folder: Path, data_root: DataRoot, encoders: dict[str, DNGEncoder], seed: int) -> Subject:
    """A network of the zoo, with 256 real samples to calibrate on and others to judge by."""
    model, blueprint = zoo.load(folder, data_root=data_root)
    real = example_batches(blueprint, "train", count=4, batch_size=64, seed=404, data_root=data_root)
    judged = example_batches(blueprint, "held-out", count=1, batch_size=128, seed=505, data_root=data_root)[0].inputs
    example = judged[:2] if isinstance(judged, torch.Tensor) else None
    return Subject(model, [b.inputs for b in real], log_damage(model, judged), encoders, example=example, seed=seed)


if __name__ == "__main__":
    main()
