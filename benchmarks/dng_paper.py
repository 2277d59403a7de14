"""The paper's rows, on networks that we fitted ourselves: SIRENs classified, INR2JLS beside other encoders, ablations.

    dnge inr mnist -o runs/inr/mnist-train.safetensors --jobs 2  # and --split held-out, and cifar10: an hour
    python benchmarks/dng_paper.py                # all of RUNS: half a day of one core; results/dng_paper.{json,md}
    python benchmarks/dng_paper.py --only mnist --arms dng --steps 3000

Every arm and seed is kept when it is done, with its steps and seconds; a run that was stopped goes on with those that
are missing; classifiers that are judged on other widths are kept (runs/inr/models). Arms of fewer steps are other arms.
Published cells (arXiv 2607.02166 and its rivals, read second-hand: research notes) are anchors, never like for like:
those networks were fitted by others. CIFAR-10 is a JPEG copy. Choices were made on the end of the train split
(dev/LOG.md); the held-out split is looked at once per row.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from dng_tables import publish
from harness import DATA, keep_rows, kept_rows
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from dnge_compress.encoder.messages import LEARNED, MAGNITUDE, RAW, random_fourier
from dnge_compress.images import images
from dnge_compress.inr import (
    INR2JLS,
    FlatEncoder,
    InrClassifier,
    InrEncoder,
    InrEncoderConfig,
    InrSet,
    JlsConfig,
    TrainSettings,
)
from dnge_compress.inr.classifier import SMOOTHING
from dnge_compress.inr.learning import Batch, in_pieces, share_right, train
from dnge_compress.inr.reader import NETWORK, Reader
from dnge_compress.inr.sets import pictures
from dnge_compress.inr.siren import Siren, Stack
from dnge_compress.shelf import Shelf

SIDE = {"mnist": 28, "cifar10": 32}
COLOURS = {"mnist": 1, "cifar10": 3}
BATCH = 128
TUNED = 5e-4  # rate of fine-tuning
WIDTHS = (64, 128, 256, 512)
PACES = {  # how wide networks were fitted: the end of a set's name, and what the table says
    "": "",
    "-mup": ", fitted at rates of maximal update parametrisation",  # --base-width 32
}
JUDGED_WIDE = 1000  # images


@dataclass(frozen=True)
class Arm:
    """Who reads the networks: what the tables call it, and how its encoder and its latent differ from ours."""

    told: str
    encoder: str = "dynamic"
    is_probing: bool = False
    is_absolute: bool = False
    is_asking: bool = False


ARMS = {
    "dng": Arm("DNG"),
    "absolute": Arm("DNG, absolute weights", is_absolute=True),
    "probes": Arm("DNG with probes", is_probing=True),
    "absolute-probes": Arm("DNG with probes, absolute weights", is_probing=True, is_absolute=True),
    "asking": Arm("DNG, cells ask", is_asking=True),
    "static": Arm("static graph", "static"),
    "none-asking": Arm("no encoder, cells ask", "none", is_asking=True),
    "flat": Arm("flat perceptron", "flat"),
    "rendered": Arm("rendered, then classified"),
}
PROBES = {"mnist": 196, "cifar10": 256}  # points, in a square at first


def _varied(signs: str = "free", **choices: Any) -> InrEncoderConfig:
    return InrEncoderConfig(signs=signs, network=replace(NETWORK, **choices))


ABLATIONS = {
    "free signs, forward, raw weights, sine candidates": _varied(),
    "canonical signs": _varied("canonical"),
    "neurons beside their negative twins": _varied("twins"),
    "order shuffled": _varied(order="shuffled"),
    "static graph, three rounds": _varied(order="static"),
    "GRU (tanh candidates)": _varied(update="gru"),
    "MLP for the GRU": _varied(update="mlp"),
    "both sweeps": _varied(directions="both"),
    "φ = {W}, {|W|, W²}": _varied(streams=(RAW, MAGNITUDE)),
    "φ = {W}, learned sines and cosines": _varied(streams=(RAW, LEARNED)),
    "φ = {W} as it is, means over sources": _varied(is_relative=False, is_rooted=False),
    "φ = 256 random Fourier features of W as it is, means over sources": _varied(
        streams=(random_fourier(256),), is_relative=False
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Some arms of a part of the table, and steps of 128 networks; of INR2JLS to draw, to classify and to fine-tune."""

    part: str
    arms: tuple[str, ...]
    steps: tuple[int, ...]


RUNS = (
    Run("mnist", ("dng",), (12000,)),
    Run("mnist", ("absolute", "absolute-probes"), (3000,)),
    Run("cifar10", ("dng", "probes"), (3000,)),
    Run("jls-mnist", ("dng", "static", "flat", "rendered"), (600, 300, 150)),
    Run("jls-mnist", ("asking", "none-asking"), (300, 300, 300)),
    Run("jls-cifar10", ("dng", "static", "flat", "probes", "rendered"), (600, 300, 150)),
    Run("jls-cifar10", ("asking", "none-asking", "rendered"), (300, 900, 1800)),
    Run("ablations", tuple(ABLATIONS), (1000,)),
    Run("width", ("dng",), (12000,)),
    Run("width", ("absolute", "absolute-probes"), (3000,)),
)


class Silent(Reader):
    """For a control: an encoder that says the same of every network."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.embedding = outputs, 1

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Zeros `[N, 1]`."""
        return stack["0.bias"].new_zeros(len(stack["0.bias"]), 1)


def main() -> None:
    """Run the arms asked for that are missing, and write the table of all there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--arms", nargs="*", choices=(*ARMS, *ABLATIONS), default=[*ARMS, *ABLATIONS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", help="in place of those of RUNS; three of INR2JLS")
    parser.add_argument("--inrs", type=Path, default=Path("runs/inr"), help="folder of the fitted networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for run in RUNS:
        arms = tuple(arm for arm in run.arms if arm in options.arms)
        if run.part in options.only and arms:
            PARTS[run.part](Run(run.part, arms, tuple(options.steps or run.steps)), options.seeds, options.inrs)
    publish()


def direct(data: str, run: Run, seeds: int, folder: Path) -> None:
    """Classes by the encoder and a head: from the weights alone, and with probes."""
    (steps,) = run.steps

    def measured(arm: str, seed: int) -> dict[str, float]:
        return _judged(_classifier(arm, data, steps, seed, folder), folder / f"{data}-test.safetensors")

    for seed, arm in product(range(seeds), run.arms):
        _measure(f"{data}, DNG only", ARMS[arm].told, steps, seed, partial(measured, arm))


def ablations(run: Run, seeds: int, folder: Path) -> None:
    """One choice at a time, at equal steps, without moves of the pictures."""
    (steps,) = run.steps

    def measured(name: str, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        classifier = InrClassifier(InrEncoder(ABLATIONS[name]))
        _taught(classifier, "mnist", steps, seed, folder, jitter="none")
        return _judged(classifier, folder / "mnist-test.safetensors")

    for seed, name in product(range(seeds), run.arms):
        _measure("mnist, ablations", name, steps, seed, partial(measured, name))


def widths(run: Run, seeds: int, folder: Path) -> None:
    """The classifiers of width 32, judged on networks of other widths, fitted as PACES say: 1,000 each, by
    `dnge inr mnist --split held-out --count 1000 --hidden W W -o runs/inr/mnist-test-WPACE.safetensors` and the option.
    """
    (steps,) = run.steps

    def measured(arm: str, file: Path, seed: int) -> dict[str, float]:
        return _judged(_classifier(arm, "mnist", steps, seed, folder), file, JUDGED_WIDE)

    files = {"32": folder / "mnist-test.safetensors"}
    files |= {
        f"{w}{told}": folder / f"mnist-test-{w}{pace}.safetensors" for pace, told in PACES.items() for w in WIDTHS
    }
    for missing in sorted(file for file in files.values() if not file.is_file()):
        print(f"no {missing}: left out; see the docstring of `widths`", file=sys.stderr)
    for seed, arm, (told, file) in product(range(seeds), run.arms, files.items()):
        if file.is_file():
            _measure("mnist, width transfer", f"{ARMS[arm].told}, judged at {told}", steps, seed,
                     partial(measured, arm, file))  # fmt: skip


def jls(data: str, run: Run, seeds: int, folder: Path) -> None:
    """INR2JLS with the DNG encoder and with others, and convolutions on the rendered pictures."""
    for seed, arm in product(range(seeds), run.arms):
        if arm == "rendered":  # as many steps as INR2JLS takes in all
            found, taken = partial(_rendered, data, sum(run.steps), folder), sum(run.steps)
        else:
            found, taken = partial(_drawn_then_classified, arm, data, run.steps, folder), list(run.steps)
        _measure(f"{data}, INR2JLS", ARMS[arm].told, taken, seed, found)


def _reader(arm: str, data: str) -> InrEncoder:
    """The graph encoder of an arm, for networks of these pictures."""
    asked = ARMS[arm]
    network = replace(NETWORK, order="static" if asked.encoder == "static" else "inference")
    probes = PROBES[data] if asked.is_probing else 0
    return InrEncoder(InrEncoderConfig(COLOURS[data], is_absolute=asked.is_absolute, probes=probes, network=network))


def _encoder(arm: str, data: str, siren: Siren) -> Reader:
    if ARMS[arm].encoder == "flat":
        return FlatEncoder(siren, NETWORK.embedding)
    return Silent(COLOURS[data]) if ARMS[arm].encoder == "none" else _reader(arm, data)


def _classifier(arm: str, data: str, steps: int, seed: int, folder: Path) -> InrClassifier:
    """The classifier of "DNG only": kept once it is trained, since another row judges it on other widths."""
    file = folder / "models" / f"{data}-{arm}-{steps}-{seed}.safetensors"
    if file.is_file():
        classifier = InrClassifier(_reader(arm, data))
        load_model(classifier, str(file))
        return classifier
    torch.manual_seed(seed)
    classifier = _taught(InrClassifier(_reader(arm, data)), data, steps, seed, folder, jitter=data)
    file.parent.mkdir(exist_ok=True)
    save_model(classifier, str(file))
    return classifier


def _taught(classifier: InrClassifier, data: str, steps: int, seed: int, folder: Path, *, jitter: str) -> InrClassifier:
    learned = InrSet.load(folder / f"{data}-train.safetensors")
    classifier.fit(learned, TrainSettings(steps, BATCH, jitter=jitter, seed=seed))
    return classifier


def _judged(classifier: InrClassifier, file: Path, count: int | None = None) -> dict[str, float]:
    networks = InrSet.load(file).select(slice(0, count))
    return {"accuracy": classifier.accuracy(networks), "parameters": _size(classifier.encoder)}


def _drawn_then_classified(arm: str, data: str, steps: Sequence[int], folder: Path, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    learned, judged = _sets(data, folder)
    encoder = _encoder(arm, data, learned.siren)
    model = INR2JLS(encoder, JlsConfig(SIDE[data], is_asking=ARMS[arm].is_asking))
    shown = pictures(images(data, "train", shelf=_shelf()), slice(None))
    drawing, classifying, tuning = (TrainSettings(count, BATCH, jitter=data, seed=seed) for count in steps)
    model.fit(learned, shown, drawing)
    seen = pictures(images(data, "held-out", shelf=_shelf()), slice(None))
    error = [
        (model.decode(model.encode(part.stack, part.siren))[:, 0] - seen[part.image]).square().mean().detach()
        for part in in_pieces(judged.select(slice(0, 2048)))
    ]
    model.fit_classifier(learned, classifying)
    frozen = model.accuracy(judged)
    model.fit_classifier(learned, replace(tuning, learning_rate=TUNED), fine_tune=True)
    drawn = float(-10 * (sum(error) / len(error) / 4).log10())
    return {"accuracy": frozen, "fine-tuned": model.accuracy(judged), "drawn, dB": drawn, "parameters": _size(encoder)}


class Rendered(nn.Module):
    """The rival that has the function itself: the networks rendered on the grid of pixels, and convolutions."""

    def __init__(self, side: int, colours: int) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.Sequential(
            nn.Conv2d(colours, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout2d(0.2),
            nn.Conv2d(64, 96, 3, 2, 1), nn.BatchNorm2d(96), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.LazyLinear(10),
        )  # fmt: skip
        self.layers(torch.zeros(2, colours, side, side))

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Logits `[N, 10]`."""
        return self.layers(siren.images(stack, self.side))


def _rendered(data: str, steps: int, folder: Path, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    learned, judged = _sets(data, folder)
    model = Rendered(SIDE[data], learned.siren.widths[-1])

    def loss(batch: Batch) -> Tensor:
        return nnf.cross_entropy(
            model(batch.stack, batch.siren), learned.labels[batch.index], label_smoothing=SMOOTHING
        )

    train(model, learned, loss, TrainSettings(steps, BATCH, jitter=data, seed=seed))
    return {"accuracy": share_right(model, judged), "parameters": _size(model)}


def _measure(
    row: str, arm: str, steps: int | list[int], seed: int, measured: Callable[[int], dict[str, float]]
) -> None:
    if any((r["row"], r["arm"], r["steps"], r["seed"]) == (row, arm, steps, seed) for r in kept_rows("dng_paper")):
        return
    started = time.perf_counter()
    values = measured(seed)
    seconds = round(time.perf_counter() - started)
    found = {"row": row, "arm": arm, "steps": steps, "seed": seed, "seconds": seconds, **values}
    keep_rows("dng_paper", [*kept_rows("dng_paper"), found])
    print(f"{row} · {arm} · seed {seed}: {values}, {seconds} s", flush=True)


def _sets(data: str, folder: Path) -> tuple[InrSet, InrSet]:
    return InrSet.load(folder / f"{data}-train.safetensors"), InrSet.load(folder / f"{data}-test.safetensors")


def _shelf() -> Shelf:
    return Shelf.find(DATA)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


PARTS: dict[str, Callable[[Run, int, Path], None]] = {
    "mnist": partial(direct, "mnist"),
    "cifar10": partial(direct, "cifar10"),
    "jls-mnist": partial(jls, "mnist"),
    "jls-cifar10": partial(jls, "cifar10"),
    "ablations": ablations,
    "width": widths,
}

if __name__ == "__main__":
    main()
