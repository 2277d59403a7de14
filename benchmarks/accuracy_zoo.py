"""The zoo of the accuracy rows: mixed networks and ViTs of `dnge zoo`, their schedules shortened so that it can be made
again in five minutes of one core.

    python benchmarks/accuracy_zoo.py --out runs/accuracy/zoo
    python benchmarks/accuracy.py --only mixed-short vit-short --reduced

Networks that are there already are kept, so the command can be killed at any point and started again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from harness import DATA

from dnge_compress.core.progress import printed
from dnge_compress.zoo.blueprint import Blueprint, blueprints
from dnge_compress.zoo.build import record, train_networks
from dnge_compress.zoo.data_root import DataRoot

FAMILIES = ("mlp", "cnn", "resnet", "vit")
SHARE = 0.15  # of the schedule of `dnge zoo`
SHORT = 98  # of its runs, 56 of which are images


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy/zoo"))
    parser.add_argument("--runs", type=int, default=SHORT, help="of `dnge zoo`; those of texts are left out")
    parser.add_argument("--share", type=float, default=SHARE, help="of the steps of `dnge zoo`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plans = [shortened(plan, options.share) for plan in blueprints(options.runs, 0) if plan.family in FAMILIES]
    for done, plan in enumerate(plans, start=1):
        last = train_networks(plan, options.out, data_root=DataRoot.find(DATA))[-1]
        printed("build", done, len(plans), f"{last.name} {record(last)['quality']['accuracy']:.3f}")


def shortened(plan: Blueprint, share: float) -> Blueprint:
    """The same run on a share of its schedule."""
    return replace(plan, steps=max(20, int(share * plan.steps)), stop=max(10, int(share * plan.stop)))


if __name__ == "__main__":
    main()
