"""How well the accuracy of networks can be read from their weights: Kendall's tau on training runs never seen.

    python -m dnge_compress.pretrain.small_cnns --help       # makes runs/accuracy/cnns.safetensors
    python benchmarks/accuracy.py --only cnn mixed vit       # writes results/accuracy.{json,md}; an hour of one core

A training run's networks stay on one side of every split. Readers and regressors choose epochs and settings on some of
the learning runs. Arms and seeds are kept when they are done; a run that was stopped goes on with what is missing.
Published cells are anchors: their networks are others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accuracy_networks import Subjects, small_cnn_subjects, zoo_subjects
from accuracy_readers import ENCODER, ReaderSettings, agreement, fitted_scores, inside, tau
from accuracy_tables import PERCEPTRONS, TREES, table_scores
from harness import RESULTS, markdown, write
from torch import Tensor

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by the number of seeds
PARTS = 4  # of the runs; one is judged
FOLDS = {"cnn": 1, "mixed": 1, "vit": 4}  # how many of the parts are, each in its turn
CHOOSING = 5  # every fifth learning run is there to choose by
DNG = ReaderSettings(encoder=ENCODER)
READERS = {
    "DNG": DNG,
    "DNG, static graph": replace(DNG, encoder=replace(ENCODER, order="static")),
    "DNG + statistics": replace(DNG, table="statistics"),
}
TABLES = {"hand statistics": "statistics", "hyper-parameters and epoch": "hyper", "epoch only": "epoch",
          "weight norm": "norm"}  # fmt: skip
ROWS: dict[str, tuple[str, str, Callable[[argparse.Namespace], Subjects]]] = {
    "cnn": ("zoo CNN, grey CIFAR-10", "DNG .936, hand statistics .915", lambda o: small_cnn_subjects(o.cnns)),
    "mixed": ("mixed architectures (MLP, CNN, ResNet)", "DNG .874, NG-T .817, with probes .933",
              lambda o: zoo_subjects(o.zoo, ("mlp", "cnn", "resnet"))),
    "vit": ("tiny ViTs", "DNG .903, NG-T .892", lambda o: zoo_subjects(o.zoo, ("vit",))),
}  # fmt: skip


def main() -> None:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cnns", type=Path, default=Path("runs/accuracy/cnns.safetensors"))
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        subjects = ROWS[name][2](options)
        for seed in range(options.seeds):
            for arm in (*READERS, *TABLES):
                if TABLES.get(arm, "statistics") in subjects.tables:
                    measure(name, arm, seed, subjects)
    publish()


def measure(row: str, arm: str, seed: int, subjects: Subjects) -> None:
    """One arm with one seed, unless it is there; the mean over the folds."""
    if any((r["row"], r["arm"], r["seed"]) == (row, arm, seed) for r in _kept()):
        return
    started = time.perf_counter()
    found = []
    for fit, choose, judge in splits(subjects.run, seed)[: FOLDS[row]]:
        scores = _scores(arm, subjects, fit, choose, seed)[judge]
        found.append((tau(scores, subjects.accuracy[judge]), inside(scores, subjects, judge)))
    overall, within = (statistics.mean(v) for v in zip(*found, strict=True))
    kept = [*_kept(), {"row": row, "arm": arm, "seed": seed, "tau": overall, "within data sets": within,
                       "networks": len(subjects), "seconds": round(time.perf_counter() - started)}]  # fmt: skip
    (RESULTS / "accuracy.json").write_text(json.dumps(kept, indent=1))
    print(f"{row} · {arm} · seed {seed}: {overall:.3f}, within {within:.3f}", file=sys.stderr, flush=True)


def splits(run: Tensor, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Positions to fit on, to choose by and to judge, for each fold; a run's networks stay together."""
    runs = run.unique()
    runs = runs[torch.randperm(len(runs), generator=torch.Generator().manual_seed(seed))]
    found = []
    for fold in range(PARTS):
        judged = runs[fold::PARTS]
        learned = runs[~torch.isin(runs, judged)]
        chosen = learned[::CHOOSING]
        fitted = learned[~torch.isin(learned, chosen)]
        found.append(tuple(torch.isin(run, part).nonzero().squeeze(1) for part in (fitted, chosen, judged)))
    return found


def _scores(arm: str, subjects: Subjects, fit: Tensor, choose: Tensor, seed: int) -> Tensor:
    if arm in READERS:
        return fitted_scores(subjects, replace(READERS[arm], seed=seed), fit, choose)
    tried = [table_scores(subjects, TABLES[arm], kind, fit, choose, seed=seed) for kind in (TREES, PERCEPTRONS)]
    return max(tried, key=lambda scores: agreement(scores[choose], subjects, choose))


def publish() -> None:
    """Write the tables of everything measured."""
    lines: list[str] = []
    for name, (title, anchor, _) in ROWS.items():
        kept = [r for r in _kept() if r["row"] == name]
        if kept:
            cells = [[arm, str(len(rows)), _interval([r["tau"] for r in rows]),
                      _interval([r["within data sets"] for r in rows])]
                     for arm in (*READERS, *TABLES) if (rows := [r for r in kept if r["arm"] == arm])]  # fmt: skip
            lines += [f"## {title}", "", f"{kept[0]['networks']} networks. Published, on other networks: {anchor}.", "",
                      *markdown(["", "seeds", "tau", "tau within data sets"], cells), ""]  # fmt: skip
    lines.append(
        "Kendall's tau-b on a quarter of the runs (ViTs: on each quarter in turn, and the mean); ± half of the 95 % "
        "interval over the seeds (Student's t), each with a split and initial weights of its own. Regressors on "
        "tables: the better of trees and perceptrons by the runs to choose by."
    )
    write("accuracy", "Accuracy read from weights", lines)


def _kept() -> list[dict[str, Any]]:
    path = RESULTS / "accuracy.json"
    return json.loads(path.read_text()) if path.is_file() else []


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {T95[len(values)] * statistics.stdev(values) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
