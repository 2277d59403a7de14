"""Does the pretrained encoder earn its place? Ranking, transfer, ablations, and pruned quality on what it never saw.

    dnge pretrain --zoo zoo --jobs 2 --out runs/base.safetensors     # the zoo and its true costs, hours
    python benchmarks/encoder.py --zoo zoo                            # about an hour and a half on two cores

Writes results/encoder_*.{md,json}. Every stage can be stopped and started again; encoders trained on the way are kept
in runs/encoder. `--only` runs one part: ranking, ablations, pruning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import RESULTS, markdown
from pruning import RATIOS, Subject, log_damage
from ranking import VARIANTS, families_left_out, is_whole, mean, trained, transfers
from real import real_models

from dnge_compress.encoder import DNGEncoder
from dnge_compress.pretrain import zoo
from dnge_compress.pretrain.batches import example_batches
from dnge_compress.pretrain.blueprint import FAMILIES
from dnge_compress.pretrain.corpora import Shelf
from dnge_compress.pretrain.fit import folds, is_held_out
from dnge_compress.pretrain.judging import interval
from dnge_compress.pretrain.targets import Lesson
from dnge_compress.pretrain.train import STEPS, measure_all

COMPARED = ("encoder", "statistics-only MLP")
ABLATED_SEEDS = (0,)
ARMS = (
    ("random", "uniform", "probes"),
    ("magnitude", "uniform", "probes"),
    ("magnitude", "global", "probes"),
    ("probe", "uniform", "probes"),
    ("probe", "global", "probes"),
    ("probe", "global, checked", "probes"),
    ("probe", "measured", "probes"),
    ("statistics-only MLP", "global", "probes"),
    ("encoder", "uniform", "probes"),
    ("encoder", "global", "probes"),
    ("encoder", "global, checked", "probes"),
    ("flap", "uniform", "real"),
    ("flap", "global", "real"),
    ("fisher", "global", "real"),
    ("wanda", "uniform", "real"),
    ("taylor", "global", "real"),
)
REAL_ARMS = tuple(a for a in ARMS if a[0] not in ("wanda", "taylor") and a != ("magnitude", "global", "probes"))
MEASURES = {
    "MiniLM": "cosine",
    "bookworm": "perplexity",
    "ResNet, CIFAR-10": "accuracy",
    "ViT, CIFAR-10": "accuracy",
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--work", type=Path, default=Path("runs/encoder"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, for every encoder")
    parser.add_argument("--ablation-steps", type=int, default=STEPS // 2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--each", type=int, default=3, help="networks of a family to prune")
    parser.add_argument("--real", type=Path, default=Path("runs/real"), help="where real_models.py put its models")
    parser.add_argument("--only", choices=("training", "ranking", "ablations", "pruning", "real"))
    parser.add_argument(
        "--seed", type=int, help="with --only training: one seed alone, so that several can run at once"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    shelf = Shelf.find(cache=options.zoo / "cache")
    lessons = measure_all(options.zoo, shelf, 1)
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    encoders = {
        variant: [trained(variant, folds(), lessons, options.steps, seed, options.work) for seed in seeds]
        for variant in COMPARED
    }
    if options.only in (None, "ranking"):
        write("encoder_ranking", "Ranking: Spearman with the true cost over all units, families left out",
              families_left_out(lessons, encoders))  # fmt: skip
        write(
            "encoder_transfer",
            "Transfer: Spearman with the true cost over all units",
            transfers(lessons, encoders["encoder"]),
        )
    if options.only in (None, "ablations"):
        parts = [f for f in folds() if f.name.startswith("without")]
        found = {
            v: [trained(v, parts, lessons, options.ablation_steps, seed, options.work) for seed in ABLATED_SEEDS]
            for v in VARIANTS
        }
        write("encoder_ablations", f"Ablations: half the training ({options.ablation_steps} steps), families left out",
              families_left_out(lessons, found))  # fmt: skip
    if options.only in (None, "pruning"):
        prune_all(options, shelf, lessons, encoders)
    if options.only in (None, "real"):
        prune_real(options, shelf, encoders)


def prune_all(
    options: argparse.Namespace,
    shelf: Shelf,
    lessons: Sequence[Lesson],
    encoders: dict[str, list[dict[str, DNGEncoder]]],
) -> None:
    """Prune a few networks of every family with every arm, each by encoders that never saw the family."""
    kept = options.work / "pruning.json"
    done = json.loads(kept.read_text()) if kept.is_file() else {}
    for family in FAMILIES:
        names = [x.name for x in lessons if x.family == family and is_whole(x) and is_held_out(x.name)]
        for i, name in enumerate(names[: options.each]):
            if name in done:
                continue
            seen = {v: seeds[i % len(seeds)][f"without {family}"] for v, seeds in encoders.items()}
            subject = opened(options.zoo / name, shelf, seen)
            done[name] = {" · ".join(arm): [subject.result(*arm, ratio)[0] for ratio in RATIOS] for arm in ARMS}
            done[name]["runs of the table"] = subject.measured.runs
            kept.write_text(json.dumps(done))
            print(
                name,
                {k: [round(v, 2) for v in x] for k, x in done[name].items() if isinstance(x, list)},
                file=sys.stderr,
                flush=True,
            )
    write(
        "encoder_pruning",
        "Pruning: mean log damage on real data (log nats; lower is better), families left out",
        table_of(done),
    )


def prune_real(options: argparse.Namespace, shelf: Shelf, encoders: dict[str, list[dict[str, DNGEncoder]]]) -> None:
    """The real models, by encoders that learned from all families of the zoo; one probe seed per encoder seed."""
    kept = options.work / "real.json"
    done = json.loads(kept.read_text()) if kept.is_file() else {}
    for title, opener in real_models(options.real).items():
        for seed in range(options.seeds):
            if f"{title}/{seed}" in done:
                continue
            subject = opener(shelf, {v: seeds[seed]["all"] for v, seeds in encoders.items()}, seed)
            rows = {" · ".join(arm): [subject.result(*arm, ratio) for ratio in RATIOS] for arm in REAL_ARMS}
            done[f"{title}/{seed}"] = rows | {"whole": subject.judge(subject.model)[1]}
            kept.write_text(json.dumps(done))
            print(
                title,
                seed,
                {k: [[round(x, 3) for x in y] for y in v] for k, v in rows.items()},
                file=sys.stderr,
                flush=True,
            )
    write("encoder_real", "Real models: what is left after pruning at a global budget", real_table(done))


def real_table(done: dict[str, dict]) -> list[str]:
    """Mean log damage over ratios, and the task's own measure at each ratio; means over seeds."""
    titles = list(dict.fromkeys(k.partition("/")[0] for k in done))
    shown = ", ".join(f"{r:.0%}" for r in RATIOS)
    head = ["scorer, plan, inputs"]
    for title in titles:
        head += [f"{title}: log damage", f"{MEASURES[title]} at {shown}"]
    table = []
    for arm in (" · ".join(a) for a in REAL_ARMS):
        cells = []
        for title in titles:
            runs = [rows[arm] for key, rows in done.items() if key.startswith(f"{title}/")]
            damage = [mean(value[0] for value in run) for run in runs]
            cells.append(f"{mean(damage):.2f}" + (f" ± {statistics.stdev(damage):.2f}" if len(damage) > 1 else ""))
            quality = [mean(run[i][1] for run in runs) for i in range(len(RATIOS))]
            cells.append(" / ".join(f"{q:.1f}" if q > 2 else f"{q:.3f}" for q in quality))
        table.append([arm, *cells])
    whole = ", ".join(f"{t} {mean(r['whole'] for k, r in done.items() if k.startswith(f'{t}/')):.3f}" for t in titles)
    seeds = max(sum(k.startswith(f"{t}/") for k in done) for t in titles)
    note = f"Unpruned: {whole}. Mean (± deviation) over up to {seeds} seeds of probes and encoder; real: 256 samples."
    return [*markdown(head, table), "", note]


def opened(folder: Path, shelf: Shelf, encoders: dict[str, DNGEncoder]) -> Subject:
    """A network of the zoo, with 256 real samples to calibrate on and others to judge by."""
    model, blueprint = zoo.load(folder, shelf=shelf)
    real = example_batches(blueprint, "train", count=4, batch_size=64, seed=404, shelf=shelf)
    judged = example_batches(blueprint, "held-out", count=1, batch_size=128, seed=505, shelf=shelf)[0].inputs
    example = judged[:2] if isinstance(judged, torch.Tensor) else None
    return Subject(model, [b.inputs for b in real], log_damage(model, judged), encoders, example=example)


def table_of(done: dict[str, dict[str, list[float]]]) -> list[str]:
    """Means over ratios per family, over all, and the paired difference from the closed form's best plan."""
    families = [f for f in FAMILIES if any(n.startswith(f) for n in done)]
    bases = {"probe · uniform · probes": "− closed form, uniform", "probe · global · probes": "− closed form, global"}
    head = ["scorer, plan, inputs", *families, "mean", *(f"{title} (95 %)" for title in bases.values())]
    table = []
    for arm in (" · ".join(a) for a in ARMS):
        values = {name: mean(rows[arm]) for name, rows in done.items()}
        by_family = [mean(v for n, v in values.items() if n.startswith(f)) for f in families]
        cells = [*(f"{v:.2f}" for v in by_family), f"**{mean(by_family):.2f}**"]
        for base in bases:
            gains = [values[n] - mean(done[n][base]) for n in done]
            value, low, high = interval(gains)
            cells.append(f"{value:+.2f} ({low:+.2f} … {high:+.2f})" if arm != base else "–")
        table.append([arm, *cells])
    runs = mean(rows["runs of the table"] for rows in done.values())
    note = f"""\
{", ".join(f"{r:.0%}" for r in RATIOS)} of the non-embedding parameters removed; least-squares repair on the arm's own
inputs: synthetic probes, or 256 real samples. {len(done)} networks: {", ".join(done)}.
The measured table took {runs:.0f} passes over a quarter of the probes, and as many repairs, for each network."""
    return [*markdown(head, table), "", note]


def write(name: str, title: str, lines: Sequence[str]) -> None:
    """One table as Markdown, printed as well."""
    text = "\n".join([f"# {title}", "", *lines, ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
