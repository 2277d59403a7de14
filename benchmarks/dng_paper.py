"""The paper's rows, on networks that we fitted ourselves: SIRENs classified, INR2JLS beside other encoders, ablations.

    dnge inr mnist -o runs/inr/mnist-train.safetensors --jobs 2                   # an hour for these and cifar10's
    dnge inr mnist --split held-out -o runs/inr/mnist-test.safetensors --jobs 2
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
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as nnf
from dng_arms import ABLATIONS, ARMS, COLOURS, RUNS, SIDE, Rendered, Run, graph_encoder, reader
from dng_tables import publish
from harness import DATA, keep_rows, kept_rows
from inr_variants import encoder_of
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from dnge_compress.core.errors import DataError
from dnge_compress.core.progress import printed
from dnge_compress.inr import INR2JLS, InrClassifier, InrSet, JlsConfig, TrainSettings
from dnge_compress.inr.classifier import SMOOTHING
from dnge_compress.inr.learning import InrBatch, in_pieces, share_right, train
from dnge_compress.inr.sets import pictures
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import images

BATCH = 128
BRIEF = 5e-4  # rate of fine-tuning that is shorter than the rest
WIDTHS = (64, 128, 256, 512)
PACES = {  # how wide networks were fitted: the end of a set's name, and what the table says
    "": "",
    "-mup": ", fitted at rates of maximal update parametrisation",  # --base-width 32
}
JUDGED_WIDE = 1000  # images
DRAWN = 2048  # images
ORDERED = {"mnist": (20000, 5000), "cifar10": (15000, 3000)}  # networks learned from and judged


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
    try:
        runs = [_asked(run, options.arms, options.steps) for run in RUNS if run.part in options.only]
    except DataError as e:
        parser.error(str(e))
    for run in runs:
        if run.arms:
            PARTS[run.part](run, options.seeds, options.inrs)
    publish()


def _asked(run: Run, arms: Sequence[str], steps: Sequence[int] | None) -> Run:
    return Run(run.part, tuple(arm for arm in run.arms if arm in arms), tuple(steps or run.steps))


def direct(data: str, run: Run, seeds: int, folder: Path) -> None:
    """Classes by the encoder and a head: from the weights alone, and with probes."""

    def measured(arm: str, seed: int) -> dict[str, float]:
        return _judged(_classifier(arm, data, run.steps[0], seed, folder), folder / f"{data}-test.safetensors")

    for seed, arm in product(range(seeds), run.arms):
        _measure(f"{data}, DNG only", ARMS[arm].told, run.steps, seed, partial(measured, arm))


def order(data: str, run: Run, seeds: int, folder: Path) -> None:
    """What the order of messages is worth: classes from the weights alone, dynamic beside static graphs."""

    def measured(arm: str, seed: int) -> dict[str, float]:
        learned, judged = (s.select(slice(0, n)) for s, n in zip(_sets(data, folder), ORDERED[data], strict=True))
        torch.manual_seed(seed)
        classifier = InrClassifier(graph_encoder(ARMS[arm], data))
        classifier.fit(learned, _settings(arm, data, run.steps[0], seed), progress=printed)
        return {"accuracy": classifier.accuracy(judged), "parameters": _size(classifier.encoder)}

    for seed, arm in product(range(seeds), run.arms):
        _measure(f"{data}, order of messages", ARMS[arm].told, run.steps, seed, partial(measured, arm))


def ablations(run: Run, seeds: int, folder: Path) -> None:
    """One choice at a time, or as many as a name says, at equal steps, without moves of the pictures."""

    def measured(name: str, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        classifier = InrClassifier(encoder_of(ABLATIONS[name], COLOURS["mnist"]))
        _teach(classifier, "mnist", TrainSettings(steps=run.steps[0], batch=BATCH, seed=seed), folder)
        return _judged(classifier, folder / "mnist-test.safetensors")

    for seed, name in product(range(seeds), run.arms):
        _measure("mnist, ablations", name, run.steps, seed, partial(measured, name))


def widths(run: Run, seeds: int, folder: Path) -> None:
    """The classifiers of width 32, judged on networks of other widths, fitted as PACES say: 1,000 each, by
    `dnge inr mnist --split held-out --count 1000 --hidden W W -o runs/inr/mnist-test-WPACE.safetensors` and the option.
    """

    def measured(arm: str, file: Path, seed: int) -> dict[str, float]:
        return _judged(_classifier(arm, "mnist", run.steps[0], seed, folder), file, JUDGED_WIDE)

    files = {"32": folder / "mnist-test.safetensors"}
    for (pace, told), width in product(PACES.items(), WIDTHS):
        files[f"{width}{told}"] = folder / f"mnist-test-{width}{pace}.safetensors"
    for missing in sorted(file for file in files.values() if not file.is_file()):
        print(f"no {missing}: left out; see the docstring of `widths`", file=sys.stderr)
    for seed, arm, (told, file) in product(range(seeds), run.arms, files.items()):
        if file.is_file():
            _measure("mnist, width transfer", f"{ARMS[arm].told}, judged at {told}", run.steps, seed,
                     partial(measured, arm, file))  # fmt: skip


def jls(data: str, run: Run, seeds: int, folder: Path) -> None:
    """INR2JLS with the DNG encoder and with others, and convolutions on the rendered pictures."""
    for seed, arm in product(range(seeds), run.arms):
        if arm == "rendered":  # as many steps as INR2JLS takes in all
            steps: tuple[int, ...] = (sum(run.steps),)
            measured = partial(_rendered, data, steps[0], folder)
        else:
            steps, measured = run.steps, partial(_drawn_then_classified, arm, data, run.steps, folder)
        _measure(f"{data}, INR2JLS", ARMS[arm].told, steps, seed, measured)


def _classifier(arm: str, data: str, steps: int, seed: int, folder: Path) -> InrClassifier:
    """The classifier of "DNG only": kept once it is trained, since another row judges it on other widths."""
    torch.manual_seed(seed)
    encoder = graph_encoder(ARMS[arm], data)
    classifier = InrClassifier(encoder)
    settings = _settings(arm, data, steps, seed)
    known = hashlib.sha256(repr((ARMS[arm], settings)).encode()).hexdigest()[:8]
    file = folder / "models" / f"{data}-{arm}-{known}-{steps}-{seed}.safetensors"
    if file.is_file():
        load_model(classifier, str(file))
        return classifier
    _teach(classifier, data, settings, folder)
    file.parent.mkdir(exist_ok=True)
    save_model(classifier, str(file))
    return classifier


def _settings(arm: str, data: str, steps: int, seed: int) -> TrainSettings:
    return TrainSettings(
        steps=steps, batch=BATCH, backbone_lr_scale=ARMS[arm].backbone_lr_scale, jitter=data, seed=seed
    )


def _teach(classifier: InrClassifier, data: str, settings: TrainSettings, folder: Path) -> None:
    classifier.fit(InrSet.load(folder / f"{data}-train.safetensors"), settings, progress=printed)


def _judged(classifier: InrClassifier, file: Path, count: int | None = None) -> dict[str, float]:
    networks = InrSet.load(file).select(slice(0, count))
    return {"accuracy": classifier.accuracy(networks), "parameters": _size(classifier.encoder)}


def _drawn_then_classified(arm: str, data: str, steps: Sequence[int], folder: Path, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    learned, judged = _sets(data, folder)
    encoder = reader(ARMS[arm], data, learned.siren)
    model = INR2JLS(encoder, JlsConfig(side=SIDE[data]))
    drawing, classifying, tuning = (_settings(arm, data, count, seed) for count in steps)
    if tuning.steps < drawing.steps + classifying.steps:
        tuning = replace(tuning, learning_rate=BRIEF)
    model.fit(learned, pictures(images(data, "train", data_root=_data_root()), slice(None)), drawing, progress=printed)
    drawn = _decibels(model, data, judged.select(slice(0, DRAWN)))
    model.fit_classifier(learned, classifying, progress=printed)
    frozen = model.accuracy(judged)
    model.fit_classifier(learned, tuning, fine_tune=True, progress=printed)
    return {"accuracy": frozen, "fine-tuned": model.accuracy(judged), "drawn, dB": drawn, "parameters": _size(encoder)}


@torch.no_grad()
def _decibels(model: INR2JLS, data: str, inrs: InrSet) -> float:
    """Peak signal to noise of the drawn pictures, by the mean of their squared errors."""
    wanted = pictures(images(data, "held-out", data_root=_data_root()), slice(None))
    errors = [
        nnf.mse_loss(model.decode(model.encode(part.stack, part.siren, [0]))[:, 0], wanted[part.image])
        for part in in_pieces(inrs)
    ]
    return float(-10 * (torch.stack(errors).mean() / 4).log10())


def _rendered(data: str, steps: int, folder: Path, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    learned, judged = _sets(data, folder)
    model = Rendered(SIDE[data], COLOURS[data])

    def loss(batch: InrBatch) -> Tensor:
        labels = learned.labels[batch.index]
        return nnf.cross_entropy(model(batch.stack, batch.siren), labels, label_smoothing=SMOOTHING)

    train(model, learned, loss, TrainSettings(steps=steps, batch=BATCH, jitter=data, seed=seed))
    return {"accuracy": share_right(model, judged), "parameters": _size(model)}


def _measure(row: str, arm: str, steps: Sequence[int], seed: int, measured: Callable[[int], dict[str, float]]) -> None:
    """Measure one arm and seed, unless that is done, and keep it."""
    known = {"row": row, "arm": arm, "steps": list(steps), "seed": seed}
    if any(known.items() <= kept.items() for kept in kept_rows("dng_paper")):
        return
    started = time.process_time()  # other jobs run beside
    values = measured(seed)
    seconds = round(time.process_time() - started)
    keep_rows("dng_paper", [*kept_rows("dng_paper"), known | {"seconds": seconds} | values])
    print(f"{row} · {arm} · seed {seed}: {values}, {seconds} s", flush=True)


def _sets(data: str, folder: Path) -> tuple[InrSet, InrSet]:
    return InrSet.load(folder / f"{data}-train.safetensors"), InrSet.load(folder / f"{data}-test.safetensors")


def _data_root() -> DataRoot:
    return DataRoot.find(DATA)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


PARTS: dict[str, Callable[[Run, int, Path], None]] = {
    "mnist": partial(direct, "mnist"),
    "cifar10": partial(direct, "cifar10"),
    "jls-mnist": partial(jls, "mnist"),
    "jls-cifar10": partial(jls, "cifar10"),
    "order-mnist": partial(order, "mnist"),
    "order-cifar10": partial(order, "cifar10"),
    "ablations": ablations,
    "width": widths,
}

if __name__ == "__main__":
    main()
