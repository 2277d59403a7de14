"""A LoRA plan, or a trained adapter, for programs that don't read rank patterns or don't speak peft."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from dnge_compress.core.errors import CheckpointError, PlanError, UnknownNameError
from dnge_compress.core.folders import atomic_folder
from dnge_compress.core.tensors import write_tensors
from dnge_compress.core.verbs import verb
from dnge_compress.lora.peft_config import value_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DOWN, UP = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


def export(config: LoraConfig, form: str) -> str:
    """A config as text for other programs: see LoraPlan.export."""
    if form not in FORMS:
        raise UnknownNameError("export form", form, FORMS)
    return FORMS[form](config)


@verb
def flatten_adapter(folder: str | Path, out: str | Path) -> Path:
    """Copy a trained adapter with every rank padded to the largest and one alpha; its outputs stay equal.

    For engines that read only `r` and `lora_alpha` (vLLM, llama.cpp, weighted merges). `folder` holds what peft's
    `save_pretrained` wrote; `out` must not exist, or be empty. Raises CheckpointError.

        flatten_adapter("runs/adapter", "runs/adapter-flat")
    """
    folder, out = Path(folder), Path(out)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"'{folder}' has no {name}, so it is no adapter that peft saved")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"'{out}' exists; choose another folder")
    config = LoraConfig.from_pretrained(str(folder))
    if config.target_parameters:
        raise CheckpointError(f"'{folder}' adapts experts' parameters, which engines without rank patterns can't read")
    tensors = load_file(folder / WEIGHTS)
    rank = max(t.shape[0] for n, t in tensors.items() if _part(n) in DOWN)
    alpha = _scale(config, "") * rank  # no pattern matches "": the config's own rank and alpha
    flat = {name: _padded(name, tensor, config, rank, alpha / rank) for name, tensor in tensors.items()}
    config.r, config.lora_alpha = rank, int(alpha) if float(alpha).is_integer() else alpha
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    with atomic_folder(out) as stage:
        config.save_pretrained(str(stage))
        write_tensors(stage / WEIGHTS, flat, {"format": "pt"})
    return out


def _peft(config: LoraConfig) -> str:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return (Path(folder) / CONFIG).read_text(encoding="utf-8")


def _axolotl(config: LoraConfig) -> str:
    if config.exclude_modules:
        raise PlanError("axolotl has no key for excluded modules, and this plan needs one; use form 'peft'")
    body: dict[str, Any] = {
        "adapter": "lora",
        "lora_r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "lora_target_modules": sorted(config.target_modules or []),
        "lora_target_parameters": sorted(config.target_parameters or []),
        "lora_rank_pattern": dict(config.rank_pattern or {}),
        "lora_alpha_pattern": dict(config.alpha_pattern or {}),
        "lora_fan_in_fan_out": config.fan_in_fan_out,
        "peft_init_lora_weights": config.init_lora_weights,
    }
    needed = ("adapter", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
    defaults = {"peft_init_lora_weights": True, "lora_fan_in_fan_out": False}
    shown = {k: v for k, v in body.items() if k in needed or (v and v != defaults.get(k))}
    return yaml.safe_dump(shown, sort_keys=False, width=100_000)


def _flat_config(config: LoraConfig) -> str:
    if config.target_parameters:
        raise PlanError("an adapter on experts' parameters can't be flattened; use form 'peft'")
    config.rank_pattern, config.alpha_pattern = {}, {}
    return _peft(config)


FORMS: Mapping[str, Callable[[LoraConfig], str]] = {"peft": _peft, "axolotl": _axolotl, "flat_config": _flat_config}


def _padded(name: str, tensor: Tensor, config: LoraConfig, rank: int, scale: float) -> Tensor:
    """A factor of an adapter with zeros up to `rank`; the factor B takes up the change of scale."""
    part = _part(name)
    if part in DOWN:
        wide = tensor.new_zeros(rank, *tensor.shape[1:])
        wide[: len(tensor)] = tensor
        return wide
    if part in UP:
        wide = tensor.new_zeros(tensor.shape[0], rank, *tensor.shape[2:])
        wide[:, : tensor.shape[1]] = tensor * (_scale(config, _module(name)) / scale)
        return wide
    return tensor


def _part(name: str) -> str:
    """ "lora_A" of …q_proj.lora_A.weight; "" for other tensors."""
    return next((p for p in name.split(".") if p in (*DOWN, *UP)), "")


def _module(name: str) -> str:
    return name.partition(f".{_part(name)}")[0]


def _scale(config: LoraConfig, module: str) -> float:
    rank = value_of(config.rank_pattern, module, config.r)
    alpha = value_of(config.alpha_pattern, module, config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)
