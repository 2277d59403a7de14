"""Training and measuring one network of the zoo on one core."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dnge_compress.core.precision import fast_products
from dnge_compress.zoo.architectures import build
from dnge_compress.zoo.batches import (
    IGNORED,
    ZooBatch,
    batches,
    cross_entropy,
    example_batches,
    logits,
    loss,
    neighbour_batches,
)
from dnge_compress.zoo.blueprint import Blueprint
from dnge_compress.zoo.corpora import unigram
from dnge_compress.zoo.data_root import DataRoot

_WARMUP_SHARE = 0.05
_LAST_LR_SHARE = 0.02
_HELD_OUT_SEED = 20_260_101
_IMAGE_EVALUATION = (20, 200)  # batches, images per batch
_TEXT_EVALUATION = (16, 32)  # batches, sequences per batch


def train_through(
    blueprint: Blueprint, stops: Sequence[int], *, data_root: DataRoot | None = None
) -> Iterator[nn.Module]:
    """The network as it is after each of the ascending `stops` steps: copies, in evaluation mode and float32.

    Matrix products run in bfloat16 where the CPU has it, weights stay float32; warm-up, cosine schedule, gradient norm
    at most 1.
    """
    model: Any = build(blueprint).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = _optimiser(blueprint, model)
    batch_size, seed = blueprint.batch_size, blueprint.seed
    stream = batches(blueprint, "train", batch_size=batch_size, seed=seed, data_root=data_root)
    torch.manual_seed(seed)  # dropout
    with float32_attention(model):
        if blueprint.preparation:
            neighbours = neighbour_batches(blueprint, batch_size=batch_size, seed=seed, data_root=data_root)
            for batch in islice(neighbours, blueprint.preparation):
                _learn(model, optimiser, batch, _neighbour_loss)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _lr_share(step, blueprint.steps))
        for step, batch in enumerate(islice(stream, max(stops)), start=1):
            _learn(model, optimiser, batch, loss)
            schedule.step()
            if step in stops:
                kept = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()
                if _attends(kept):
                    kept.set_attn_implementation("sdpa")
                random_state = torch.get_rng_state()
                yield kept
                torch.set_rng_state(random_state)


def measure(model: nn.Module, blueprint: Blueprint, *, data_root: DataRoot | None = None) -> dict[str, float]:
    """Held-out loss (nats) and accuracy (0..1) in float32; for text also the unigram loss there."""
    data_root = data_root or DataRoot.find()
    count, batch_size = _TEXT_EVALUATION if blueprint.is_language else _IMAGE_EVALUATION
    held_out = example_batches(
        blueprint, "held-out", count=count, batch_size=batch_size, seed=_HELD_OUT_SEED, data_root=data_root
    )
    labels = torch.cat([batch.labels for batch in held_out])
    model.eval()
    with torch.no_grad():
        losses, right = [], 0
        for batch in held_out:
            predicted = logits(model, batch)
            losses.append(cross_entropy(predicted, batch.labels).item())
            right += int((predicted.argmax(-1) == batch.labels).sum())
    quality = {"loss": sum(losses) / count, "accuracy": right / int((labels != IGNORED).sum())}
    if blueprint.is_language:
        quality["unigram_loss"] = _unigram_loss(blueprint, labels, data_root)
    return quality


def _learn(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: ZooBatch,
    compute: Callable[[nn.Module, ZooBatch], Tensor],
) -> None:
    with fast_products(training=True):
        value = compute(model, batch)
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def _neighbour_loss(model: nn.Module, batch: ZooBatch) -> Tensor:
    predicted = logits(model, batch)  # [B, L, V]
    return cross_entropy(predicted.unsqueeze(2).expand(-1, -1, 2, -1), batch.labels)


def _unigram_loss(blueprint: Blueprint, labels: Tensor, data_root: DataRoot) -> float:
    return -unigram(blueprint.data, data_root=data_root)[labels[labels != IGNORED]].mean().item()


def _lr_share(step: int, steps: int) -> float:
    warmup = max(1, int(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    return _LAST_LR_SHARE + (1 - _LAST_LR_SHARE) * cosine


def _optimiser(blueprint: Blueprint, model: nn.Module) -> torch.optim.Optimizer:
    """Weight decay reaches matrices only, not norms and biases."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": blueprint.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if blueprint.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=blueprint.lr, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=blueprint.lr, betas=(0.9, 0.98), fused=True)


def _attends(model: nn.Module) -> TypeGuard[PreTrainedModel]:
    return isinstance(model, PreTrainedModel) and model.config.model_type != "resnet"


@contextmanager
def float32_attention(model: nn.Module) -> Iterator[None]:
    """Keep attention out of bfloat16: its CPU backward pass is five times slower there (torch 2.13)."""
    if not _attends(model):
        yield
        return
    usual = model.config._attn_implementation
    AttentionInterface.register("float32_sdpa", _attend)
    model.set_attn_implementation("float32_sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
