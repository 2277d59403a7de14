"""From data to weights: `dnge pretrain` builds the zoo, measures true costs, and trains the encoder on them.

    dnge pretrain --zoo zoo --runs 210 --jobs 2 --out base.safetensors

Every stage can be killed and started again: finished networks, targets and epochs are not done twice.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as nnf
from scipy.stats import spearmanr
from torch import Tensor

from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FLOOR
from dnge_compress.errors import DngeError
from dnge_compress.pretrain import zoo
from dnge_compress.pretrain.corpora import Shelf
from dnge_compress.pretrain.targets import Lesson, make_targets, read_lesson

HELD_OUT = 6  # every sixth network, by a hash of its name, is never trained on
MATRIX_WEIGHT = 0.1
FEATURE_NOISE = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Make encoder weights; 0 when they are written, 2 on wrong data or folders."""
    parser = argparse.ArgumentParser(prog="dnge pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="folder of the networks")
    parser.add_argument("--runs", type=int, default=210, help="training runs of the zoo; each gives three networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--data", type=Path, help="folder of the data sets (else DNGE_DATA, ../shared/data)")
    parser.add_argument("--out", type=Path, default=Path("base.safetensors"), help="where the encoder's weights go")
    options = parser.parse_args(arguments)
    try:
        shelf = Shelf.find(options.data, options.zoo / "cache")
        made = zoo.main(_zoo_arguments(options))
        if made:
            return made
        lessons = measure_all(options.zoo, shelf, options.jobs)
        encoder, results = fit(lessons, options.epochs, options.seed, options.zoo / "training.pt")
        provenance = {"networks": len(lessons), "zoo_seed": options.seed, "epochs": options.epochs, **results}
        encoder.save_pretrained(options.out, provenance)
        print(json.dumps(provenance, indent=1))
    except DngeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure_all(folder: Path, shelf: Shelf, jobs: int) -> list[Lesson]:
    """Targets for every network of the zoo, made where missing, and all lessons read."""
    networks = [network for network in zoo.finished(folder) if has_learned(network)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        tasks = [pool.submit(make_targets, network, shelf) for network in networks]
        for i, task in enumerate(tasks):
            print(f"[{i + 1}/{len(tasks)}] targets of {task.result().parent.name}", file=sys.stderr, flush=True)
    return [read_lesson(network, shelf) for network in networks]


def has_learned(network: Path) -> bool:
    """Whether a language model is clearly below the unigram loss; one that isn't has nothing to teach."""
    quality = zoo.record(network)["quality"]
    return "unigram_loss" not in quality or quality["loss"] < 0.97 * quality["unigram_loss"]


def fit(lessons: list[Lesson], epochs: int, seed: int, state: Path) -> tuple[DNGEncoder, dict[str, object]]:
    """Train on all lessons but the held-out ones; return the encoder of the best held-out loss, and its results."""
    torch.manual_seed(seed)
    learned = [x for x in lessons if not is_held_out(x.name)]
    judged = [x for x in lessons if is_held_out(x.name)]
    encoder = DNGEncoder()
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, epochs * len(learned), pct_start=0.1)
    best: tuple[float, dict[str, Tensor]] = (float("inf"), {})
    first = 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        encoder.load_state_dict(saved["encoder"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        first, best = saved["epoch"], (saved["best_loss"], saved["best"])
    for epoch in range(first, epochs):
        order = random.Random(seed + epoch).sample(learned, len(learned))
        total = 0.0
        for lesson in order:
            loss = lesson_loss(encoder, lesson, FEATURE_NOISE)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        with torch.no_grad():
            held_out = sum(float(lesson_loss(encoder, x)) for x in judged) / max(1, len(judged))
        if held_out < best[0]:
            best = (held_out, {k: v.clone() for k, v in encoder.state_dict().items()})
        print(
            f"epoch {epoch + 1}  loss {total / len(learned):.4f}  held out {held_out:.4f}", file=sys.stderr, flush=True
        )
        parts = {"encoder": encoder, "optimiser": optimiser, "schedule": schedule}
        states = {name: part.state_dict() for name, part in parts.items()}
        _keep(state, {"epoch": epoch + 1, "best_loss": best[0], "best": best[1], **states})
    encoder.load_state_dict(best[1])
    return encoder.eval(), evaluate(encoder, judged)


def lesson_loss(encoder: DNGEncoder, lesson: Lesson, noise: float = 0.0) -> Tensor:
    """Huber loss of the log costs: units about their space's mean, spaces as a whole, layers, and matrices."""
    features = {k: v + noise * torch.randn_like(v) for k, v in lesson.features.items()}
    found = encoder(lesson.graph, lesson.weights, features, _layer_logs(lesson))
    losses = []
    for name, correction in {**found.units, **found.layers}.items():
        error = lesson.closed[name].clamp_min(FLOOR).log() + correction - lesson.targets[name]
        losses.append(nnf.smooth_l1_loss(error, torch.zeros_like(error), beta=0.5))
        if len(error) > 1 and name in found.units:
            centred = error - error.mean()
            losses.append(nnf.smooth_l1_loss(centred, torch.zeros_like(error), beta=0.5))
    known = [p for p in found.matrices if p in lesson.matrices]
    predicted = torch.stack([found.matrices[p] for p in known])
    wanted = torch.stack([lesson.matrices[p] for p in known])
    matrices = nnf.smooth_l1_loss(predicted - predicted.mean(), wanted)
    return torch.stack(losses).mean() + MATRIX_WEIGHT * matrices


@torch.no_grad()
def evaluate(encoder: DNGEncoder, lessons: list[Lesson]) -> dict[str, object]:
    """Rank correlations with the true costs on held-out networks, and the target's reliability."""
    rows: dict[str, list[float]] = {}
    for lesson in lessons:
        found = encoder(lesson.graph, lesson.weights, lesson.features, _layer_logs(lesson))
        closed = {n: lesson.closed[n].clamp_min(FLOOR).log() for n in lesson.targets}
        corrected = {n: closed[n] + c for n, c in {**found.units, **found.layers}.items()}
        for who, logs in (("closed form", closed), ("encoder", corrected)):
            inside = [_rank(logs[n], lesson.targets[n]) for n in found.units if len(logs[n]) > 2]
            rows.setdefault(f"within a space, {who}", []).append(sum(inside) / len(inside))
            everything = [torch.cat([x[n] for n in lesson.targets]) for x in (logs, lesson.targets)]
            rows.setdefault(f"over the network, {who}", []).append(_rank(*everything))
            gap = torch.cat([logs[n] - lesson.targets[n] for n in lesson.targets]).abs().mean()
            rows.setdefault(f"log error, {who}", []).append(float(gap))
        rows.setdefault("reliability within a space", []).append(lesson.reliability)
    means = {key: round(sum(v) / len(v), 4) for key, v in rows.items()}
    return {"held_out": sorted(x.name for x in lessons), "spearman": means}


def is_held_out(name: str) -> bool:
    """Whether a network is kept for judging, by a hash of its name."""
    return zlib.crc32(name.partition("@")[0].encode()) % HELD_OUT == 0


def _rank(a: Tensor, b: Tensor) -> float:
    value = float(spearmanr(a, b).statistic)
    return value if value == value else 0.0  # a constant has no ranks


def _layer_logs(lesson: Lesson) -> dict[str, Tensor]:
    return {s.name: lesson.closed[s.name].clamp_min(FLOOR).log() for s in lesson.graph.of_kind("layer")}


def _keep(state: Path, values: dict[str, object]) -> None:
    """Write the state of training so that a kill leaves the last one whole."""
    half = state.with_suffix(".half")
    torch.save(values, half)
    half.replace(state)


def _zoo_arguments(options: argparse.Namespace) -> list[str]:
    arguments = ["--out", str(options.zoo), "--runs", str(options.runs), "--seed", str(options.seed)]
    arguments += ["--jobs", str(options.jobs)]
    return arguments + (["--data", str(options.data)] if options.data else [])


def _one_thread() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
