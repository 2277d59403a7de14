"""What follows a frozen encoder's head: all of INR2JLS, or all but the walk, learns on at a small rate, on copies that
are moved anew in every step. Models are kept, to go on from and to be judged on others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from dnge_compress.core.files import atomic_file
from dnge_compress.core.progress import printed
from dnge_compress.inr import INR2JLS, InrSet, TrainSettings
from dnge_compress.inr.learning import in_pieces
from dnge_compress.inr.views import VIEWS

PARTS = {"all": True, "latents": False}  # what learns besides latents and head: whether the reader does


def tune(model: INR2JLS, learned: InrSet, settings: TrainSettings, parts: str) -> None:
    """Learn on, networks moved anew in every step."""
    model.encoder.requires_grad_(PARTS[parts])
    model.fit_classifier(learned, settings, fine_tune=True, progress=printed)


@torch.no_grad()
def missed(model: INR2JLS, judged: InrSet) -> float:
    """Cross-entropy of the mean logits of the six views, nats: tells finer than accuracy where few are judged."""
    found = [nnf.cross_entropy(model.classify(part.stack, part.siren) / VIEWS, part.labels, reduction="sum")
             for part in in_pieces(judged)]  # fmt: skip
    return float(sum(found)) / len(judged)


def kept_or_learned(
    model: nn.Module, known: dict[str, Any], folder: Path, learn: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Give a model the values that it was kept with under what is known of it, or have it learn and keep those; the
    minutes that it took."""
    name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / "models" / f"jls-{name}.safetensors"
    if file.is_file():
        load_model(model, str(file))
        with safe_open(str(file), "pt") as found:
            return json.loads(found.metadata()["minutes"])
    minutes = learn()
    with atomic_file(file) as part:
        save_model(model, str(part), {"minutes": json.dumps(minutes)})
    return minutes
