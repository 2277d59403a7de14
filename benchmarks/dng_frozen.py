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
from dng_tuning import PARTS, kept_or_learned, missed, tune
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
CHOSEN_BY = 1000  # networks at the end of the train split
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


def _walk(data: str, inrs: InrSet) -> InrReader:
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
    "points": Arm("DNG, 4 points a cell, walk as it began, skip", _walk, skip=True),
    "points-no-skip": Arm("DNG, 4 points a cell, walk as it began", _walk),
    "small": Arm("DNG, 64 points, learned by drawing", _small, learns=True),
    "static": Arm("static graph that begins as inference, 64 points, learned by drawing",
                  lambda data, inrs: VariantEncoder(Variant(order="remembering"), COLOURS[data]), learns=True),
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
    parser.add_argument("--parts", choices=tuple(PARTS), default="all", help="that are tuned; or all but the walk")
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
    if not options.choose:
        publish()


def measure(data: str, name: str, seed: int, options: argparse.Namespace) -> None:
    """Measure one arm and seed, unless that is done, and keep it."""
    learned, judged = (InrSet.load(options.inrs / f"{data}-{split}.safetensors") for split in ("train", "test"))
    if options.choose:
        learned, judged = learned.select(slice(0, -CHOSEN_BY)), learned.select(slice(-CHOSEN_BY, None))
    if options.networks:
        learned, judged = (s.select(slice(0, n)) for s, n in zip((learned, judged), options.networks, strict=True))
    frozen: dict[str, Any] = {"data": data, "arm": ARMS[name].told, "seed": seed, "learned": len(learned),
                              "steps": list(options.steps[:2]), "batch": options.batch, "rate": options.head_rate,
                              "copies": options.copies, "mixup": options.mixup,
                              "dropout": list(options.dropout)}  # fmt: skip
    tuned = frozen | {"steps": list(options.steps)}
    if options.steps[2]:
        tuned |= {"tuning rate": options.tuning_rate, "tuned": options.parts}
    known = tuned | {"judged": len(judged)}
    if not options.choose and any(known.items() <= kept.items() for kept in kept_rows("dng_frozen")):
        return
    arm, settings = ARMS[name], _settings(data, seed, options)
    model = _begun(data, arm, learned, seed, options)
    found: dict[str, Any] = dict(known)
    found |= kept_or_learned(
        model, frozen, options.inrs, lambda: _learned(model, data, arm, learned, settings, options)
    )
    found |= _judged(model, data, arm, judged, options.choose)
    if options.choose:
        found["missed"] = missed(model, judged)
    if options.steps[2] and not arm.is_rendered:
        found |= kept_or_learned(model, tuned, options.inrs, lambda: _tuned(model, learned, settings[1], options))
        found["fine-tuned"] = model.accuracy(judged)
        if options.choose:
            found["missed, tuned"] = missed(model, judged)
    print(found, flush=True)
    if not options.choose:
        keep_rows("dng_frozen", [*kept_rows("dng_frozen"), found])


def _tuned(model: INR2JLS, learned: InrSet, heading: TrainSettings, options: argparse.Namespace) -> dict[str, float]:
    """Minutes that tuning takes."""
    clock = Clock()
    tune(model, learned, replace(heading, steps=options.steps[2], learning_rate=options.tuning_rate), options.parts)
    return {"tuning": clock.minutes()}


def _settings(data: str, seed: int, options: argparse.Namespace) -> tuple[TrainSettings, TrainSettings]:
    """To draw, and of the head."""
    drawing, heading, _ = options.steps
    settings = TrainSettings(steps=drawing, batch=options.batch, learning_rate=DRAWING, jitter=data, seed=seed)
    return settings, replace(settings, steps=heading, learning_rate=options.head_rate, weight_decay=0.1)


def _begun(data: str, arm: Arm, learned: InrSet, seed: int, options: argparse.Namespace) -> INR2JLS:
    """The arm's model before it learns."""
    torch.manual_seed(seed)
    reader = arm.reader(data, learned)
    dropout, last = options.dropout
    head = HeadConfig(dropout=dropout, last_dropout=last, mixup=options.mixup)
    config = JlsConfig(side=SIDE[data], head=head, skip=arm.skip, copies=options.copies)
    return rendered(reader, config) if arm.is_rendered else INR2JLS(reader, config)


def _learned(
    model: INR2JLS,
    data: str,
    arm: Arm,
    learned: InrSet,
    settings: tuple[TrainSettings, TrainSettings],
    options: argparse.Namespace,
) -> dict[str, float]:
    """Minutes that the arm takes to learn to draw, and its head to classify."""
    drawing, heading = settings
    clock = Clock()
    minutes: dict[str, float] = {}
    reader = model.encoder.requires_grad_(arm.learns)
    readings = None
    if not arm.learns:
        readings = read_all(reader, learned, jitter=data, copies=options.copies, seed=drawing.seed)
    if not arm.is_rendered:
        model.fit(learned, _pictures(data, "train"), drawing, readings=readings, progress=printed)
        minutes["drawing"], clock = clock.minutes(), Clock()
    model.fit_classifier(learned, heading, readings=readings, progress=printed)
    return minutes | {"head": clock.minutes()}


def _judged(model: INR2JLS, data: str, arm: Arm, judged: InrSet, is_choosing: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    if not arm.is_rendered and not is_choosing:
        found["dB"] = decibels(model, data, judged.select(slice(0, DRAWN)))
    clock = Clock()
    return found | {"accuracy": model.accuracy(judged), "judging": clock.minutes()}


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
