"""Checks that every weight of a model is a finite floating-point number and held under one name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dnge_compress.core.errors import UnsupportedModelError, WeightError


def check_weights(model: nn.Module) -> None:
    """Raise WeightError or UnsupportedModelError for a model that can't be compressed safely.

    Refused are NaN and infinite weights, quantized (integer or 8-bit float) weights, weights without values (on the
    meta device), and parameters shared in a way that transformers doesn't know how to restore. Ties that
    transformers makes itself (`tie_word_embeddings`) are fine, and so are integer buffers.

        check_weights(AutoModel.from_pretrained("bert-base-uncased"))
    """
    _refuse_quantized_modules(model)
    _refuse_offloaded(model)
    for name, parameter in model.named_parameters():
        _check_values(name, parameter, "a parameter")
        if parameter.numel() and not _is_finite(parameter):
            kind = "NaN" if torch.isnan(parameter).any() else "infinite"
            raise WeightError(f"'{name}' holds {kind} values; the model is damaged, use a sound checkpoint")
    for name, buffer in model.named_buffers():
        leaf = name.rpartition(".")[2]
        if "weight" in leaf and buffer.ndim > 1:
            _check_values(name, buffer, "a weight")
        # Masks may hold -inf; statistics may not.
        broken = ~torch.isfinite(buffer) if leaf.startswith("running_") else torch.isnan(buffer)
        if not buffer.is_meta and broken.any():
            raise WeightError(f"buffer '{name}' holds values that are not finite; use a sound checkpoint")
    _refuse_unknown_ties(model)


def _refuse_quantized_modules(model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "quantization_config", None):
        raise UnsupportedModelError(
            f"the {type(model).__name__} is quantized; compress the floating-point model, then quantize"
        )
    for name, module in model.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise WeightError(f"'{name}' is a quantized {type(module).__name__}; use the floating-point model")


def _refuse_offloaded(model: nn.Module) -> None:
    if getattr(model, "hf_device_map", None) and any(p.is_meta for p in model.parameters()):
        raise WeightError(
            f"the {type(model).__name__}'s device_map leaves weights on the disk; pass its folder or hub id "
            "in its place: weights then stay mapped from their files, and need not fit into memory"
        )


def _check_values(name: str, tensor: Tensor, what: str) -> None:
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        raise WeightError(
            f"'{name}' is quantized ({what} of {str(tensor.dtype).removeprefix('torch.')}); "
            "compress the floating-point model, then quantize"
        )
    if tensor.is_meta:
        raise WeightError(f"'{name}' has no values (it is on the meta device); load the model fully")


def _is_finite(tensor: Tensor) -> bool:
    """One pass, without a mask as large as the tensor; the extremes of a tensor with a NaN are NaN."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())


def _refuse_unknown_ties(model: nn.Module) -> None:
    by_memory: dict[tuple[torch.device, int], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.numel():
            by_memory.setdefault((parameter.device, parameter.data_ptr()), []).append(name)
    ties = model.get_expanded_tied_weights_keys(all_submodels=True) if isinstance(model, PreTrainedModel) else {}
    for names in by_memory.values():
        stranger = _not_tied_to(names[0], names, ties.items())
        if stranger is not None:
            raise UnsupportedModelError(
                f"'{names[0]}' and '{stranger}' share one parameter, so cutting one would cut the other; "
                "give each its own copy"
            )


def _not_tied_to(root: str, names: list[str], ties: Iterable[tuple[str, str]]) -> str | None:
    """The first of `names` that no chain of known ties connects with `root`."""
    pairs = [pair for pair in ties if pair[0] in names and pair[1] in names]
    reached = {root}
    for _ in names:
        reached |= {name for pair in pairs if reached & set(pair) for name in pair}
    return next((name for name in names if name not in reached), None)
