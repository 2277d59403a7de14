"""Signs that calibration inputs are unlike what a model was trained on, from what the checkpoint itself tells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.batch_norms import distance
from dnge_compress.signals.beginnings import declared_start
from dnge_compress.signals.calibration import are_matched, default_kind
from dnge_compress.signals.divergence import outputs_of
from dnge_compress.signals.inference import Inputs, examples_in, has_logits, inference_mode_of, writes_text
from dnge_compress.signals.pieces import answered_in_pieces
from dnge_compress.signals.tokenizer import tokenizer_of
from dnge_compress.signals.vocabulary import vocabulary_of

FAR = 0.5  # from a batch norm's statistics; real images are at about .1
UNSURE = 0.8  # of the entropy of a uniform choice
FEW = 32  # examples of real data
UNSEEN = 0.5  # share of a vocabulary's words
WAY_OUT = "pass data=… (--data) to be sure"


def kind_of_inputs(
    model: nn.Module, batches: Sequence[Inputs], settings: Calibration, example: Inputs | None, is_real: bool
) -> str:
    """A key of `plans.expected.BANDS`: what a model is calibrated on."""
    if is_real:
        return "real"
    kind = settings.kind if settings.kind != "auto" else default_kind(model, example)
    if kind == "sampled" and not writes_text(model):
        return "masked"
    return "matched" if kind in ("images", "like") and are_matched(model, batches) else kind


def doubts(model: Any, batches: Sequence[Inputs], settings: Calibration, kind: str) -> tuple[str, ...]:
    """One sentence for each sign."""
    found: list[str] = []
    if kind == "real" and sum(map(examples_in, batches)) < FEW:
        found.append(f"{sum(map(examples_in, batches))} examples are few; the repair may fit them alone")
    if kind == "sampled" and not settings.prompts and declared_start(model) is None:
        found.append(
            "the config names no start token, and how texts begin was found by trial; "
            f"set calibration.prompts, or {WAY_OUT}"
        )
    if kind in ("sampled", "masked") and _entropy(model, batches[0]) > UNSURE:
        found.append(f"the model is hardly sure of any token that it writes; {WAY_OUT}")
    if kind == "words":
        found += _of_words(model, batches)
    if kind == "matched":
        off = distance(model, batches)
        if off > FAR:
            found.append(f"the painted images are far from what the batch norms have seen ({off:.2g}); {WAY_OUT}")
    if kind in ("images", "like"):
        found.append(f"nothing in the checkpoint tells what its inputs were like; {WAY_OUT}")
    return tuple(found)


def _of_words(model: Any, batches: Sequence[Inputs]) -> list[str]:
    if tokenizer_of(model.name_or_path or "") is None:
        return [f"no tokenizer lies beside the model, so its texts are random tokens; {WAY_OUT}"]
    entries = vocabulary_of(model).entries
    seen = torch.cat([b["input_ids"].flatten().cpu() for b in batches if isinstance(b, Mapping)]).unique()
    share = float(torch.isin(entries, seen).float().mean()) if len(entries) else 1.0
    if share < UNSEEN:
        return [f"{share:.0%} of the vocabulary's words occur in the calibration texts; {WAY_OUT}"]
    return []


def _entropy(model: nn.Module, batch: Inputs) -> float:
    """Mean entropy of the model's answers, as a share of the largest there can be."""
    if not has_logits(model):
        return 0.0
    total, count, classes = 0.0, 0, 2
    with torch.no_grad(), inference_mode_of(model):
        for piece in answered_in_pieces(model, [batch]):
            logs = outputs_of(model, piece).float().log_softmax(-1)
            total -= float((logs.exp() * logs).sum())
            count, classes = count + logs.shape[:-1].numel(), max(2, logs.shape[-1])
    return total / count / math.log(classes)
