"""A zoo of small trained networks, one folder each, for the graph encoder to learn from.

    dnge zoo -o zoo --jobs 2

It can be killed at any point and started again: finished networks are kept.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import nn

from dnge_compress.core.claims import LOCK, claimed
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.folders import atomic_folder
from dnge_compress.core.progress import Progress, silent
from dnge_compress.core.strict_json import read_json
from dnge_compress.zoo.architectures import build
from dnge_compress.zoo.blueprint import Blueprint, blueprints
from dnge_compress.zoo.corpora import tokenizer_folder, tokens
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.engines import ONE_PROCESS, Engine
from dnge_compress.zoo.images import images
from dnge_compress.zoo.training import measure, train_through

RUNS = 200  # training runs, each of which gives three networks


def train_networks(blueprint: Blueprint, out: Path, *, data_root: DataRoot | None = None) -> list[Path]:
    """Train one run and save the networks it gives (`Blueprint.networks`) as `out/<name>`, each whole or not at all.

    A folder holds model.safetensors (float32) and blueprint.json (blueprint, quality, provenance). Folders that are
    there already are kept. Raises: CheckpointError if one of them holds another blueprint.
    """
    networks = blueprint.networks()
    missing = [m for m in networks if not _is_there(m, out)]
    started = time.perf_counter()
    stops = sorted({m.stop for m in missing})
    for stop, model in zip(stops, train_through(blueprint, stops, data_root=data_root) if stops else (), strict=True):
        seconds = time.perf_counter() - started
        for network in (m for m in missing if m.stop == stop):
            _save(network, model, seconds, out, data_root)
    return [out / m.name for m in networks]


def _is_there(blueprint: Blueprint, out: Path) -> bool:
    folder = out / blueprint.name
    if folder.exists() and Blueprint.from_dict(record(folder)["blueprint"]) != blueprint:
        raise CheckpointError(f"'{folder}' holds another blueprint; choose another folder")
    return folder.exists()


def _save(blueprint: Blueprint, model: nn.Module, seconds: float, out: Path, data_root: DataRoot | None) -> None:
    quality = measure(model, blueprint, data_root=data_root) | {"seconds": round(seconds, 2)}
    content = {"blueprint": blueprint.to_dict(), "quality": quality, "provenance": _provenance(model)}
    with atomic_folder(out / blueprint.name) as stage:
        safetensors.torch.save_model(model, str(stage / "model.safetensors"))
        (stage / "blueprint.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(folder: Path | str, *, data_root: DataRoot | None = None) -> tuple[nn.Module, Blueprint]:
    """Restore a network of the zoo, in evaluation mode; a language model finds its tokenizer if a data root is given.

    Raises: CheckpointError if it isn't one.
    """
    blueprint = Blueprint.from_dict(record(Path(folder))["blueprint"])
    model: Any = build(blueprint)
    safetensors.torch.load_model(model, str(Path(folder) / "model.safetensors"))
    if blueprint.is_language and data_root:
        model.name_or_path = str(tokenizer_folder(blueprint.data, data_root=data_root))
    return model.eval(), blueprint


def record(folder: Path) -> dict[str, Any]:
    """What blueprint.json says: blueprint, quality (loss, accuracy, seconds …) and provenance."""
    path = folder / "blueprint.json"
    if not path.is_file():
        raise CheckpointError(
            f"'{folder}' is not a network of the zoo: it has no blueprint.json; make one with `dnge zoo`"
        )
    return read_json(path)


def finished(out: Path | str) -> list[Path]:
    """Folders of all the networks that are ready, by name."""
    return sorted(path.parent for path in Path(out).glob("[!.]*/blueprint.json"))


def build_zoo(
    out: Path, runs: int, seed: int, data_root: DataRoot, engine: Engine = ONE_PROCESS, progress: Progress = silent
) -> None:
    """Make the zoo of so many runs and this seed in `out`; what is there already is kept.

    Raises CheckpointError if another zoo lies there, or another process builds it, DataError, LaunchError.
    """
    with claimed(out, out / LOCK):
        _build(blueprints(runs, seed), out, data_root, engine, progress)


def _build(plans: Sequence[Blueprint], out: Path, data_root: DataRoot, engine: Engine, progress: Progress) -> None:
    missing = [plan for plan in plans if not all(_is_there(m, out) for m in plan.networks())]
    for data in sorted({plan.data for plan in missing}):  # fill the cache once, before the processes need it
        for split in ("train", "held-out"):
            (tokens if data.startswith("books") else images)(data, split, data_root=data_root)
    found = engine.each_done(partial(train_networks, out=out, data_root=data_root), [(plan,) for plan in missing])
    for done, folders in enumerate(found, start=len(plans) - len(missing) + 1):
        progress("build zoo", done, len(plans), _line(folders[-1]))


def _line(folder: Path) -> str:
    quality = record(folder)["quality"]
    return folder.name + " " + " ".join(f"{key} {value:.3f}" for key, value in quality.items())


def _provenance(model: nn.Module) -> dict[str, Any]:
    return {
        "made_by": "dnge zoo",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
