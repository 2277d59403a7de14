"""A zoo of small trained networks, one folder each, for the graph encoder to learn from.

    python -m dnge_compress.zoo.build --out zoo --runs 200 --seed 0 --jobs 2

The command can be killed at any point and started again: finished networks are skipped, halves of a killed
run swept away. Only one command may work on a folder at a time.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import nn

from dnge_compress.core.errors import CheckpointError, DngeError
from dnge_compress.zoo.architectures import build
from dnge_compress.zoo.batches import ZooBatch, example_batches, logits, loss
from dnge_compress.zoo.blueprint import FAMILIES, Blueprint, blueprints
from dnge_compress.zoo.corpora import tokenizer_folder, tokens
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import images
from dnge_compress.zoo.training import measure, train, train_through
from dnge_compress.zoo.workers import each_done, positive

__all__ = [
    "FAMILIES",
    "ZooBatch",
    "Blueprint",
    "DataRoot",
    "blueprints",
    "build",
    "example_batches",
    "finished",
    "load",
    "logits",
    "loss",
    "measure",
    "train_networks",
    "record",
    "train",
]

RUNS = 200  # training runs, each of which gives three networks
_UNFINISHED = ".unfinished-"


def train_networks(blueprint: Blueprint, out: Path, *, data_root: DataRoot | None = None) -> list[Path]:
    """Train one run and save the networks it gives (`Blueprint.moments`) as `out/<name>`, each whole or not at all.

    A folder holds model.safetensors (float32) and blueprint.json (blueprint, quality, provenance). Folders that are
    there already are kept. Raises: CheckpointError if one of them holds another blueprint.
    """
    moments = blueprint.moments()
    missing = [m for m in moments if not _is_there(m, out)]
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    stops = sorted({m.stop for m in missing})
    for stop, model in zip(stops, train_through(blueprint, stops, data_root=data_root) if stops else (), strict=True):
        seconds = time.perf_counter() - started
        for moment in (m for m in missing if m.stop == stop):
            _save(moment, model, seconds, out, data_root)
    return [out / m.name for m in moments]


def _is_there(blueprint: Blueprint, out: Path) -> bool:
    folder = out / blueprint.name
    if folder.exists() and Blueprint.from_dict(record(folder)["blueprint"]) != blueprint:
        raise CheckpointError(f"{folder} holds another blueprint; choose another --out")
    return folder.exists()


def _save(blueprint: Blueprint, model: nn.Module, seconds: float, out: Path, data_root: DataRoot | None) -> None:
    with tempfile.TemporaryDirectory(dir=out, prefix=_UNFINISHED) as temporary:
        quality = measure(model, blueprint, data_root=data_root) | {"seconds": round(seconds, 2)}
        half = Path(temporary) / blueprint.name
        half.mkdir()
        safetensors.torch.save_model(model, str(half / "model.safetensors"))
        content = {"blueprint": blueprint.to_dict(), "quality": quality, "provenance": _provenance(model)}
        (half / "blueprint.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        half.replace(out / blueprint.name)


def load(folder: Path | str, *, data_root: DataRoot | None = None) -> tuple[nn.Module, Blueprint]:
    """Restore a network of the zoo, in evaluation mode; a language model finds its tokenizer if a data root is given.

    Raises: CheckpointError if it isn't one.
    """
    blueprint = Blueprint.from_dict(record(Path(folder))["blueprint"])
    model = build(blueprint)
    safetensors.torch.load_model(model, str(Path(folder) / "model.safetensors"))
    if blueprint.is_language and data_root:
        model.name_or_path = str(tokenizer_folder(blueprint.data, data_root=data_root))
    return model.eval(), blueprint


def record(folder: Path) -> dict[str, Any]:
    """What blueprint.json says: blueprint, quality (loss, accuracy, seconds …) and provenance."""
    path = folder / "blueprint.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a network of the zoo: it has no blueprint.json")
    return json.loads(path.read_text(encoding="utf-8"))


def finished(out: Path | str) -> list[Path]:
    """Folders of all the networks that are ready, by name."""
    return sorted(path.parent for path in Path(out).glob("[!.]*/blueprint.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the zoo; 0 when all networks are there, 2 on wrong data or folders."""
    parser = argparse.ArgumentParser(prog="python -m dnge_compress.zoo.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="folder of the zoo")
    parser.add_argument("--runs", type=positive, default=RUNS, help="training runs; each gives three networks")
    parser.add_argument("--seed", type=int, default=0, help="which zoo")
    parser.add_argument("--jobs", type=positive, default=1, help="processes, one thread each")
    parser.add_argument("--data", type=Path, help="folder of the data sets (else DNGE_DATA, ../shared/data)")
    options = parser.parse_args(arguments)
    try:
        data_root = DataRoot.find(options.data, options.out / "cache")
        _make(blueprints(options.runs, options.seed), options.out, data_root, options.jobs)
    except DngeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make(plans: list[Blueprint], out: Path, data_root: DataRoot, jobs: int) -> None:
    for half in out.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(half)
    missing = [p for p in plans if not all(_is_there(m, out) for m in p.moments())]
    print(f"{len(plans) - len(missing)} of {len(plans)} runs are there", file=sys.stderr)
    for data in sorted({plan.data for plan in missing}):  # fill the cache once, before the processes need it
        for split in ("train", "held-out"):
            (tokens if data.startswith("books") else images)(data, split, data_root=data_root)
    found = each_done(jobs, partial(train_networks, out=out, data_root=data_root), [(plan,) for plan in missing])
    for done, folders in enumerate(found, start=1):
        print(f"[{done}/{len(missing)}] {_line(folders[-1])}", file=sys.stderr, flush=True)


def _line(folder: Path) -> str:
    quality = record(folder)["quality"]
    return folder.name + " " + " ".join(f"{key} {value:.3f}" for key, value in quality.items())


def _provenance(model: nn.Module) -> dict[str, Any]:
    return {
        "made_by": "dnge_compress.zoo.build",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


if __name__ == "__main__":
    sys.exit(main())
