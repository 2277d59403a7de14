"""INR2JLS on a frozen encoder, long heads: what the latents hold, beside upper bounds and controls.

    dnge inr mnist --count 5000 -o runs/inr/mnist-train.safetensors
    dnge inr mnist --split held-out --count 3000 -o runs/inr/mnist-test.safetensors
    python benchmarks/dng_frozen.py --only mnist          # results/dng_frozen.{json,md}
    python benchmarks/dng_frozen.py --only mnist --choose   # judged on the end of the train split, not kept

Every arm and seed is kept when it is done, with its sizes and its CPU minutes. All arms have one head, as many steps of
it, and the same moved copies. The held-out split is looked at once per row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from dng_arms import COLOURS, SIDE
from dng_frozen_tables import publish
from dng_paper import _decibels as decibels
from harness import DATA, keep_rows, kept_rows
from inr_variants import FlatEncoder, Variant, VariantEncoder
from renderings import Rendering, rendered

from dnge_compress.core.progress import printed
from dnge_compress.inr import INR2JLS, HeadConfig, InrEncoder, InrEncoderConfig, InrSet, JlsConfig, TrainSettings
from dnge_compress.inr.encoders import InrReader
from dnge_compress.inr.readings import read_all
from dnge_compress.inr.sets import pictures
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import images

CELLS = {data: side // 4 for data, side in SIDE.items()}  # a side of the latents
CHOSEN_BY = 500  # networks at the end of the train split
DRAWN = 1000  # held-out images whose drawings are measured
DRAWING = 2e-3  # rate


@dataclass(frozen=True)
class Arm:
    """What the table calls it; the reader; whether cells hear their points; whether the reader learns to draw."""

    told: str
    reader: Callable[[str, InrSet], InrReader]
    skip: bool = False
    learns: bool = False
    is_rendered: bool = False


def _points(data: str, per_cell: int = 2) -> int:
    return (per_cell * CELLS[data]) ** 2


def _begun(data: str, inrs: InrSet) -> InrReader:
    return InrEncoder(InrEncoderConfig(outputs=COLOURS[data], hidden=_points(data)))


def _small(data: str, inrs: InrSet) -> InrReader:
    return InrEncoder(InrEncoderConfig(outputs=COLOURS[data]))


def _random(data: str, inrs: InrSet) -> InrReader:
    return VariantEncoder(Variant(is_functional=False, hidden=_points(data)), COLOURS[data])


ARMS = {
    "rendered": Arm("rendered at every pixel", lambda data, inrs: Rendering(SIDE[data], COLOURS[data]),
                    is_rendered=True),
    "rendered-coarse": Arm("rendered at as many points as the walk has channels",
                           lambda data, inrs: Rendering(2 * CELLS[data], COLOURS[data]), is_rendered=True),
    "points": Arm("DNG, 4 points a cell, walk as it began, skip", _begun, skip=True),
    "points-no-skip": Arm("DNG, 4 points a cell, walk as it began", _begun),
    "small": Arm("DNG, 64 points, learned by drawing", _small, learns=True),
    "static": Arm("fair static graph, 64 points, learned by drawing",
                  lambda data, inrs: VariantEncoder(Variant(order="fair static"), COLOURS[data]), learns=True),
    "random": Arm("DNG of random initial values, as large, skip", _random, skip=True),
    "flat": Arm("flat perceptron, learned by drawing", lambda data, inrs: FlatEncoder(inrs.siren, 512), learns=True),
}  # fmt: skip


def main() -> None:
    """Run the arms asked for that are missing, and write the table of all there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=tuple(SIDE), default=list(SIDE))
    parser.add_argument("--arms", nargs="*", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs=3, default=(300, 800, 0), help="to draw, of the head, to tune all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--head-rate", type=float, default=2e-3)
    parser.add_argument("--tuning-rate", type=float, default=1e-4)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--mixup", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, nargs=2, default=(0.2, 0.5), help="of the head, within and last")
    parser.add_argument("--networks", type=int, nargs=2, help="learned from and judged, the first (default: all)")
    parser.add_argument("--choose", action="store_true", help="judge on the end of the train split and keep nothing")
    parser.add_argument("--inrs", type=Path, default=Path("runs/inr"), help="folder of the fitted networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for data, seed, arm in product(options.only, options.seeds, options.arms):
        measure(data, arm, seed, options)
    publish()


def measure(data: str, name: str, seed: int, options: argparse.Namespace) -> None:
    """Measure one arm and seed, unless that is done, and keep it."""
    learned, judged = (InrSet.load(options.inrs / f"{data}-{split}.safetensors") for split in ("train", "test"))
    if options.choose:
        learned, judged = learned.select(slice(0, -CHOSEN_BY)), learned.select(slice(-CHOSEN_BY, None))
    if options.networks:
        learned, judged = (s.select(slice(0, n)) for s, n in zip((learned, judged), options.networks, strict=True))
    known: dict[str, Any] = {"data": data, "arm": ARMS[name].told, "seed": seed, "learned": len(learned),
                             "judged": len(judged), "steps": list(options.steps), "batch": options.batch,
                             "rate": options.head_rate, "copies": options.copies, "mixup": options.mixup,
                             "dropout": list(options.dropout)}  # fmt: skip
    if options.steps[2]:
        known["tuning rate"] = options.tuning_rate
    if not options.choose and any(known.items() <= kept.items() for kept in kept_rows("dng_frozen")):
        return
    found = known | _measured(data, ARMS[name], learned, judged, seed, options)
    print(found, flush=True)
    if not options.choose:
        keep_rows("dng_frozen", [*kept_rows("dng_frozen"), found])


def _measured(
    data: str, arm: Arm, learned: InrSet, judged: InrSet, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    torch.manual_seed(seed)
    reader = arm.reader(data, learned)
    dropout, last = options.dropout
    head = HeadConfig(dropout=dropout, last_dropout=last, mixup=options.mixup)
    config = JlsConfig(side=SIDE[data], head=head, skip=arm.skip, copies=options.copies)
    model = rendered(reader, config) if arm.is_rendered else INR2JLS(reader, config)
    drawing, heading, tuning = options.steps
    settings = TrainSettings(steps=drawing, batch=options.batch, learning_rate=DRAWING, jitter=data, seed=seed)
    clock = Clock()
    found: dict[str, Any] = {}
    reader.requires_grad_(arm.learns)
    readings = None if arm.learns else read_all(reader, learned, jitter=data, copies=options.copies, seed=seed)
    if not arm.is_rendered:
        model.fit(learned, _pictures(data, "train"), settings, readings=readings, progress=printed)
        found["drawing"] = clock.minutes()
        if not options.choose:
            found["dB"] = decibels(model, data, judged.select(slice(0, DRAWN)))
    clock = clock if arm.is_rendered else Clock()
    classifying = replace(settings, steps=heading, learning_rate=options.head_rate, weight_decay=0.1)
    model.fit_classifier(learned, classifying, readings=readings, progress=printed)
    found["head"], clock = clock.minutes(), Clock()
    found |= {"accuracy": model.accuracy(judged), "judging": clock.minutes()}
    if tuning and not arm.is_rendered:
        clock = Clock()
        reader.requires_grad_(True)
        brief = replace(settings, steps=tuning, learning_rate=options.tuning_rate, weight_decay=0.1)
        model.fit_classifier(learned, brief, fine_tune=True, progress=printed)
        found |= {"tuning": clock.minutes(), "fine-tuned": model.accuracy(judged)}
    return found


class Clock:
    """Minutes of CPU time, since other jobs run beside."""

    def __init__(self) -> None:
        self.started = time.process_time()

    def minutes(self) -> float:
        """Since it was made."""
        return round((time.process_time() - self.started) / 60, 2)


def _pictures(data: str, split: str) -> torch.Tensor:
    return pictures(images(data, split, data_root=DataRoot.find(DATA)), slice(None))


if __name__ == "__main__":
    main()
