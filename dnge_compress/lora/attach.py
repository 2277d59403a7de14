"""Adapters on a model: attach those of a plan to train them, merge trained ones into the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from dnge_compress.core.errors import PlanError
from dnge_compress.lora.plan import LoraPlan


def attach(model: Any, plan: LoraPlan, *, seed: int, task_type: str | None = "CAUSAL_LM") -> PeftModel:
    """The model wrapped by peft with the plan's adapters, which change nothing before training; seeded.

    Raises PlanError if peft makes another number of parameters trainable than the plan says.
    """
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, plan.lora_config(task_type))
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    if trainable != plan.params:
        raise PlanError(f"the plan trains {plan.params:,} parameters, but peft made {trainable:,}; make a new plan")
    return wrapped


def merged(model: Any, adapter: Path) -> Any:
    """The model (changed in place, its class kept) with a trained adapter folded into its weights."""
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
