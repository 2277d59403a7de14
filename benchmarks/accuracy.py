"""How well the accuracy of networks can be read from their weights: Kendall's tau on training runs never seen.

    python benchmarks/small_cnns.py --help       # makes runs/accuracy/cnns.safetensors
    python benchmarks/accuracy.py --only cnn mixed vit       # writes results/accuracy.{json,md}; hours of one core
    python benchmarks/accuracy_zoo.py && python benchmarks/accuracy.py --only mixed-short vit-short --reduced

A training run's networks stay on one side of every split. Readers and regressors choose epochs and settings on some of
the learning runs. Arms and seeds are kept when they are done; a run that was stopped goes on with what is missing.
`--reduced` trains the encoders of the zoo's rows for a few epochs and judges one part only, in rows of their own.
Published cells are anchors: their networks are others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accuracy_networks import BOTH, CLASSES, Herd, Subjects, small_cnn_subjects, splits, zoo_subjects
from accuracy_readers import ENCODER, PROBING, ReaderSettings, agreement, fitted_scores, inside, ranks, tau
from accuracy_tables import PERCEPTRONS, TREES, table_scores
from accuracy_walks import walked
from harness import keep_rows, kept_rows, markdown, over_seeds, write
from torch import Tensor

MEASURED = ("seeds", "values", "within data sets", "seconds")  # one of each per seed; "values" are taus
FOLDS = {"vit": 4, "vit-short": 4}  # of the parts that are judged, each in its turn; of other rows one
REDUCED_EPOCHS, REDUCED_BATCH = 30, 12
REDUCED = (
    f"reduced: encoders learn for {REDUCED_EPOCHS} epochs instead of 60, in batches of {REDUCED_BATCH}, "
    "one quarter of the runs judged"
)
DNG = ReaderSettings(ENCODER)
READERS = {
    "DNG": DNG,
    "DNG, static graph": replace(DNG, order="static"),
    "DNG + statistics": replace(DNG, table="statistics"),
    "DNG with probes + answers": replace(DNG, features=PROBING, table="answers"),
    "DNG with probes + statistics and answers": replace(DNG, features=PROBING, table=BOTH),
}
TABLES = {"hand statistics": "statistics", "answers to probes": "answers", "hand statistics and answers": BOTH,
          "hyper-parameters and epoch": "hyper", "epoch only": "epoch", "weight norm": "norm"}  # fmt: skip
WALKS = {"untrained walk": ("walk",), "untrained walk and hand statistics": ("walk", "statistics")}
MEANS = {"DNG and hand statistics, ranks averaged": ("DNG", "hand statistics"),
         "DNG + statistics and hand statistics, ranks averaged": ("DNG + statistics", "hand statistics")}  # fmt: skip
ARMS = (*READERS, *TABLES, *WALKS, *MEANS)
ROWS: dict[str, tuple[str, str, Callable[[argparse.Namespace], Subjects]]] = {
    "cnn": ("zoo CNN, grey CIFAR-10", "DNG .936, hand statistics .915", lambda o: small_cnn_subjects(o.cnns)),
    "mixed": ("mixed architectures (MLP, CNN, ResNet)", "DNG .874, NG-T .817, with probes .933",
              lambda o: zoo_subjects(o.zoo, ("mlp", "cnn", "resnet"))),
    "vit": ("tiny ViTs", "DNG .903, NG-T .892", lambda o: zoo_subjects(o.zoo, ("vit",))),
    "mixed-short": ("mixed architectures, the short zoo", "DNG .874, NG-T .817, with probes .933",
                    lambda o: zoo_subjects(o.short, ("mlp", "cnn", "resnet"))),
    "vit-short": ("tiny ViTs, the short zoo", "DNG .903, NG-T .892", lambda o: zoo_subjects(o.short, ("vit",))),
}  # fmt: skip


def main() -> None:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cnns", type=Path, default=Path("runs/accuracy/cnns.safetensors"))
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--short", type=Path, default=Path("runs/accuracy/zoo"), help="what accuracy_zoo.py makes")
    parser.add_argument("--reduced", action="store_true", help="few epochs, one part judged (not for cnn)")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=[*ARMS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        subjects = ROWS[name][2](options)
        for seed in range(options.seeds):
            for arm in options.arms:
                if TABLES.get(arm, "statistics") in subjects.tables:
                    measure(name, arm, seed, subjects, is_reduced=options.reduced and name != "cnn")
    publish()


def measure(row: str, arm: str, seed: int, subjects: Subjects, *, is_reduced: bool = False) -> None:
    """One arm with one seed, unless it is there; the mean over the folds."""
    key = {"row": row, "arm": arm, "note": REDUCED if is_reduced else ""}
    if any(seed in entry["seeds"] for entry in kept_rows("accuracy") if key.items() <= entry.items()):
        return
    started = time.perf_counter()
    found = []
    for fit, choose, judge in splits(subjects.run, seed)[: 1 if is_reduced else FOLDS.get(row, 1)]:
        scores = _scores(arm, subjects, fit, choose, seed, is_reduced)[judge]
        found.append((tau(scores, subjects.accuracy[judge]), inside(scores, subjects, judge)))
    overall, within = (statistics.mean(v) for v in zip(*found, strict=True))
    rows = kept_rows("accuracy")
    entry = next((e for e in rows if key.items() <= e.items()), None)
    if entry is None:
        entry = key | {"anchor": ROWS[row][1], "networks": len(subjects), **{name: [] for name in MEASURED}}
        rows.append(entry)
    seconds = round(time.perf_counter() - started)
    for name, value in zip(MEASURED, (seed, overall, within, seconds), strict=True):
        entry[name].append(value)
    keep_rows("accuracy", rows)
    print(f"{row} · {arm} · seed {seed}: {overall:.3f}, within {within:.3f}", file=sys.stderr, flush=True)


def _scores(arm: str, subjects: Subjects, fit: Tensor, choose: Tensor, seed: int, is_reduced: bool) -> Tensor:
    if arm in MEANS:
        both = [_scores(part, subjects, fit, choose, seed, is_reduced) for part in MEANS[arm]]
        return sum(ranks(scores, scores) for scores in both)
    if arm in READERS:
        settings = replace(READERS[arm], seed=seed)
        if is_reduced:
            settings = replace(settings, epochs=REDUCED_EPOCHS, batch=REDUCED_BATCH)
        return fitted_scores(subjects, settings, fit, choose)
    if arm in WALKS:
        tables = subjects.tables | {"walk": walked(subjects, fit, seed)}
        subjects = replace(subjects, tables={arm: torch.cat([tables[name] for name in WALKS[arm]], 1)})
    subjects = _without_weights(subjects)
    table = TABLES.get(arm, arm)
    tried = [table_scores(subjects, table, kind, fit, choose, seed=seed) for kind in (TREES, PERCEPTRONS)]
    return max(tried, key=lambda scores: agreement(scores[choose], subjects, choose))


def _without_weights(subjects: Subjects) -> Subjects:
    """One herd with nothing in it: what a regressor on tables needs, with nothing to copy for each batch."""
    count = len(subjects)
    empty = Herd(subjects.herds[0].graph, {}, {CLASSES: torch.zeros(count, 1, 1)}, torch.arange(count))
    return replace(subjects, herds=(empty,))


def publish() -> None:
    """Write the tables of everything measured."""
    lines: list[str] = []
    for name, (title, anchor, _) in ROWS.items():
        for note in ("", REDUCED):
            kept = [e for arm in ARMS for e in kept_rows("accuracy")
                    if (e["row"], e["note"], e["arm"]) == (name, note, arm)]  # fmt: skip
            if kept:
                cells = [[e["arm"], str(len(e["seeds"])), *(over_seeds(e[v], 3) for v in MEASURED[1:3])] for e in kept]
                about = f"{kept[0]['networks']} networks. Published, on other networks: {anchor}."
                lines += [f"## {title}{' (reduced)' * bool(note)}", "", about, *([f"Note: {note}."] * bool(note)), "",
                          *markdown(["", "seeds", "tau", "tau within data sets"], cells), ""]  # fmt: skip
    lines.append(
        "Kendall's tau-b on a quarter of the runs (ViTs, where not reduced: on each quarter in turn, and the mean); ± "
        "half of the 95 % interval over the seeds (Student's t), each with a split and initial weights of its own. "
        "Regressors on tables: the better of trees and perceptrons, in 28 settings, by the runs to choose by; they are "
        "not reduced where encoders are, which have one setting each. "
        "Answers are what a network says to painted pictures: its function is asked. Early trials of directions and "
        "losses (dev/LOG.md) saw some of the small CNNs' judged runs. The short zoo is that of accuracy_zoo.py, "
        "of fewer runs and shorter schedules than the other's, so its rows stand apart. Untrained walks are random "
        "message passing: means and deviations of the states, read by the regressors on tables."
    )
    write("accuracy", "Accuracy read from weights", lines)


if __name__ == "__main__":
    main()
