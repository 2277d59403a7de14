"""A zoo of small trained networks, one folder each, for the graph encoder to learn from.

    python -m dnge_compress.pretrain.zoo --out zoo --count 112 --seed 0 --jobs 2

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
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import nn

from dnge_compress.errors import CheckpointError, DngeError
from dnge_compress.pretrain.architectures import build
from dnge_compress.pretrain.batches import Batch, example_batches, logits, loss
from dnge_compress.pretrain.blueprint import FAMILIES, Blueprint, blueprints
from dnge_compress.pretrain.corpora import Shelf, images, tokens
from dnge_compress.pretrain.training import measure, train

__all__ = [
    "FAMILIES",
    "Batch",
    "Blueprint",
    "Shelf",
    "blueprints",
    "build",
    "example_batches",
    "finished",
    "load",
    "logits",
    "loss",
    "measure",
    "raise_network",
    "record",
    "train",
]

_UNFINISHED = ".unfinished-"


def raise_network(blueprint: Blueprint, out: Path, *, shelf: Shelf | None = None) -> Path:
    """Train one network and save it as `out/<name>`; the folder appears whole or not at all.

    It holds model.safetensors (float32) and blueprint.json (blueprint, quality, provenance).
    A folder that is there already is kept. Raises: CheckpointError if it holds another blueprint.
    """
    folder = out / blueprint.name
    if folder.exists():
        if Blueprint.from_dict(record(folder)["blueprint"]) != blueprint:
            raise CheckpointError(f"{folder} holds another blueprint; choose another --out")
        return folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=_UNFINISHED) as temporary:
        started = time.perf_counter()
        model = train(blueprint, shelf=shelf)
        seconds = time.perf_counter() - started
        quality = measure(model, blueprint, shelf=shelf) | {"seconds": round(seconds, 2)}
        half = Path(temporary) / blueprint.name
        half.mkdir()
        safetensors.torch.save_model(model, str(half / "model.safetensors"))
        content = {"blueprint": blueprint.to_dict(), "quality": quality, "provenance": _provenance(model)}
        (half / "blueprint.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        half.replace(folder)
    return folder


def load(folder: Path | str) -> tuple[nn.Module, Blueprint]:
    """Restore a network of the zoo, in evaluation mode. Raises: CheckpointError if it isn't one."""
    blueprint = Blueprint.from_dict(record(Path(folder))["blueprint"])
    model = build(blueprint)
    safetensors.torch.load_model(model, str(Path(folder) / "model.safetensors"))
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
    parser = argparse.ArgumentParser(prog="python -m dnge_compress.pretrain.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="folder of the zoo")
    parser.add_argument("--count", type=int, default=112, help="networks")
    parser.add_argument("--seed", type=int, default=0, help="which zoo")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--data", type=Path, help="folder of the data sets (else DNGE_DATA, ../shared/data)")
    options = parser.parse_args(arguments)
    try:
        shelf = Shelf.find(options.data, options.out / "cache")
        _make(blueprints(options.count, options.seed), options.out, shelf, options.jobs)
    except DngeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make(plans: list[Blueprint], out: Path, shelf: Shelf, jobs: int) -> None:
    for half in out.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(half)
    missing = [plan for plan in plans if not (out / plan.name / "blueprint.json").is_file()]
    print(f"{len(plans) - len(missing)} of {len(plans)} networks are there", file=sys.stderr)
    for data in sorted({plan.data for plan in missing}):  # fill the cache once, before the processes need it
        for split in ("train", "held-out"):
            (tokens if data.startswith("books") else images)(data, split, shelf=shelf)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        tasks = [pool.submit(raise_network, plan, out, shelf=shelf) for plan in plans]
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                print(f"[{done}/{len(plans)}] {_line(task.result())}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    torch.set_num_threads(1)


def _line(folder: Path) -> str:
    quality = record(folder)["quality"]
    return folder.name + " " + " ".join(f"{key} {value:.3f}" for key, value in quality.items())


def _provenance(model: nn.Module) -> dict[str, Any]:
    return {
        "made_by": "dnge_compress.pretrain.zoo",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


if __name__ == "__main__":
    sys.exit(main())
