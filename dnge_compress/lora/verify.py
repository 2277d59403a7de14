"""Proof that peft makes of a plan what the plan says."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from dnge_compress.core.errors import PlanError
from dnge_compress.lora.adapters import Adapter
from dnge_compress.lora.peft_config import value_of

BUG = "report this plan as a bug"
PREFIXES = ("", "base_model.model.")  # peft matches patterns against names before and after it wraps the model


def verify(adapters: Sequence[Adapter], config: LoraConfig, model: nn.Module) -> int:
    """Trainable parameters of the model that peft builds. Raises PlanError naming the first difference to `adapters`.

    The model may be on any device, and is only read; what peft builds has no values.
    """
    wanted = {a.site.path: a for a in adapters if a.rank > 0}
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        reloaded = LoraConfig.from_pretrained(folder)
    for candidate in (config, reloaded):
        _check_matching(wanted, candidate, model)
        _check_built(wanted, candidate, model)
    return sum(a.params for a in wanted.values())


def _check_matching(wanted: Mapping[str, Adapter], config: LoraConfig, model: nn.Module) -> None:
    """Targets and ranks by peft's matcher, name by name."""
    modules = {path for path, a in wanted.items() if a.site.kind == "module"}
    for name, _ in model.named_modules():
        if bool(check_target_module_exists(config, name)) != (name in modules):
            raise PlanError(f"peft {'misses' if name in modules else 'also takes'} '{name}'; {BUG}")
    for path, adapter in wanted.items():
        for prefix in PREFIXES:
            name = f"{prefix}{path}"
            keys = [k for k in config.rank_pattern or {} if re.match(rf"(.*\.)?({k})$", name)]
            if len(keys) > 1:
                raise PlanError(f"'{path}' matches {len(keys)} patterns ({', '.join(keys)}); they must exclude others")
            found = value_of(config.rank_pattern, name, config.r)
            if found != adapter.rank:
                raise PlanError(f"peft gives '{name}' rank {found}, the plan says {adapter.rank}; {BUG}")


def _check_built(wanted: Mapping[str, Adapter], config: LoraConfig, model: nn.Module) -> None:
    """What `get_peft_model` makes, on a copy without values."""
    config = copy.deepcopy(config)
    scales = {path: _scale(config, a.rank) for path, a in wanted.items()}
    config.init_lora_weights = True  # other ways to start look at the weights, and there are none
    skeleton = _without_values(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says of parameter keys that they were ignored, and applies them
        built = get_peft_model(skeleton, config, low_cpu_mem_usage=True)
    found = dict(_adapters(built))
    if found.keys() != wanted.keys():
        odd = min(found.keys() ^ wanted.keys())
        raise PlanError(f"peft {'misses' if odd in wanted else 'also adapts'} '{odd}'; {BUG}")
    for path, (rank, scale) in found.items():
        if rank != wanted[path].rank or abs(scale - scales[path]) > 1e-6 * scale:
            raise PlanError(f"peft builds '{path}' with rank {rank} and scale {scale:g}, not as planned; {BUG}")
    params = sum(p.numel() for p in built.parameters() if p.requires_grad)
    planned = sum(a.params for a in wanted.values())
    if params != planned:
        raise PlanError(f"peft builds {params:,} trainable parameters, the plan says {planned:,}; {BUG}")


def _scale(config: LoraConfig, rank: int) -> float:
    is_constant_alpha = not config.alpha_pattern
    return config.lora_alpha / (rank if is_constant_alpha else config.r)


def _adapters(built: nn.Module) -> Iterator[tuple[str, tuple[int, float]]]:
    """Path → (rank, scale) of every adapter, with names as in the base model."""
    for name, module in built.named_modules():
        if isinstance(module, LoraLayer):
            path = re.sub(r"(\.base_layer)+", "", name.removeprefix(PREFIXES[1]))
            if isinstance(module, ParamWrapper):
                path = f"{path}.{module.parameter_name}"
            yield path, (module.r["default"], module.scaling["default"])


def _without_values(model: nn.Module) -> nn.Module:
    """A copy with every tensor on the meta device: names and shapes, no memory."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()
    }
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(extra): None for extra in (model.__dict__.get("dnge"),) if extra is not None}
    with torch.no_grad():
        return copy.deepcopy(model, memo)
