"""LoRA fine-tuning as the benchmarks do it: the same start, order of data and schedule for every arm of a seed."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

WARMUP = 0.1  # of the steps


def windows(ids: Tensor, length: int) -> Tensor:
    """A token stream `[N]` as non-overlapping windows `[N // length, length]`."""
    return ids[: len(ids) // length * length].view(-1, length)


def adapt(
    base: nn.Module, config: LoraConfig, rows: Tensor, *, lr: float, steps: int, batch: int, seed: int
) -> nn.Module:
    """A copy of `base` with LoRA trained on rows of tokens `[N, T]`: AdamW, linear warm-up, then cosine to zero."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), config).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr, weight_decay=0.0)
    warm = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda i: min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, i - warm) / max(1, steps - warm)))),
    )
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(rows), (batch,), generator=order)
        loss = language_loss(model, rows[pick])
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
    return model.eval()


def language_loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean next-token loss in nats of rows `[B, T]`."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, rows: Tensor, batch: int = 32) -> float:
    """Mean loss in nats per token over all rows."""
    parts = rows.split(batch)
    return sum(float(language_loss(model, part)) * len(part) for part in parts) / len(rows)
