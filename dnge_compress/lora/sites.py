"""Which matrices of a model an adapter can be put on, and their values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dnge_compress.core.errors import PlanError, UnknownNameError, UnsupportedModelError, WeightError
from dnge_compress.graph.builder import fingerprint, shapes_of
from dnge_compress.lora.adapters import Site, SiteKind
from dnge_compress.recipes.lora_schema import matches

ALL_LINEAR = "all-linear"
# Ends of names by which peft knows what it adds to modules_to_save for a task ("pre_classifier" is one of them).
TASK_HEADS = ("classifier", "score", "qa_outputs")
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba"}  # in which peft refuses these layers
NOT_IN_MAMBA = {"out_proj", "conv1d"}
# Names that peft (utils/transformers_weight_conversion.py) takes for experts of an older transformers wherever the
# model is a mixture of experts, and rewrites: a shared expert's own `up_proj` can only be reached as a parameter.
REWRITTEN = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")


def find_sites(model: nn.Module, targets: str | Sequence[str] = ALL_LINEAR, exclude: Sequence[str] = ()) -> list[Site]:
    """The sites of `model`, in its own order; `targets` and `exclude` match as in peft (exactly, or as a suffix).

    "all-linear" means every linear layer except the output embedding, a task's head (which peft trains as a whole) and
    layers that peft refuses, and the experts' tensors. Raises
    UnknownNameError for a name that matches nothing, UnsupportedModelError where nothing is left or LoRA is there
    already, PlanError for a target whose weight is tied to another.
    """
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise UnsupportedModelError("the model has LoRA adapters already; merge them first (merge_and_unload)")
    found = list(_all_sites(model))
    names = [s.path for s in found]
    for name in (*(() if targets == ALL_LINEAR else targets), *exclude):
        if not any(matches(path, name) for path in names):
            known = {path.rpartition(".")[2] for path in names}
            raise UnknownNameError("target", name, known, "it must be the end of a linear layer's name")
    tied = _tied_weights(model)
    if targets == ALL_LINEAR:
        head = _output_embedding(model)
        left_out = {head, *(s.path for s in found if s.path.endswith(TASK_HEADS) or _is_refused(model, s))}
        chosen = [s for s in found if s.path not in left_out and not (s.weight in tied and s.kind == "module")]
    else:
        chosen = [s for s in found if any(matches(s.path, t) for t in targets)]
    chosen = [s for s in chosen if not any(matches(s.path, name) for name in exclude)]
    for site in chosen:
        if site.weight in tied:
            raise PlanError(f"'{site.path}' shares its weight with another layer; an adapter on it can't be merged")
    if not chosen:
        raise UnsupportedModelError(
            f"no matrix of this {type(model).__name__} can take an adapter: it has {len(names)} linear layers, and "
            f"target_modules and exclude_modules leave none of them"
        )
    return chosen


def _is_refused(model: nn.Module, site: Site) -> bool:
    """Whether peft takes no adapter there: some layers of Mamba, and routers that return more than a product."""
    if site.kind != "module":
        return False
    if getattr(getattr(model, "config", None), "model_type", None) in MAMBA:
        return site.path.rpartition(".")[2] in NOT_IN_MAMBA
    owner = type(model.get_submodule(site.path))
    return issubclass(owner, nn.Linear) and owner.forward is not nn.Linear.forward and "Router" in owner.__name__


def matrix_of(model: nn.Module, site: Site) -> Tensor:
    """The site's weights as float32 `[copies, outputs, inputs]`. Raises WeightError where they are quantized."""
    weight = model.get_parameter(site.weight).detach()
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise WeightError(
            f"'{site.weight}' is quantized ({str(weight.dtype).removeprefix('torch.')}), so its values can't be "
            "judged; place on the floating-point model, or use placer='uniform'"
        )
    return as_stack(weight, site).float()


def as_stack(weight: Tensor, site: Site) -> Tensor:
    """A tensor in the layout of the site's parameter as `[copies, outputs, inputs]`."""
    if site.is_transposed:
        weight = weight.transpose(-1, -2)
    return weight.reshape(site.copies, site.outputs, site.inputs)


def _all_sites(model: nn.Module) -> Iterator[Site]:
    experts = {name: p for name, p in model.named_parameters() if _is_expert(name, p, model)}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            is_hidden = bool(experts) and path.rpartition(".")[2] in REWRITTEN
            kind: SiteKind = "parameter" if is_hidden else "module"
            yield Site(
                path=f"{path}.weight" if is_hidden else path,
                kind=kind,
                inputs=module.in_features,
                outputs=module.out_features,
            )
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            yield Site(path=path, kind="module", inputs=inputs, outputs=outputs, is_transposed=True)
        for name, _ in module.named_parameters(path, recurse=False):
            if name in experts:
                copies, outputs, inputs = experts[name].shape
                site = Site(path=name, kind="parameter", inputs=inputs, outputs=outputs, copies=copies)
                is_transposed = bool(getattr(module, "is_transposed", False))
                yield replace(site, inputs=outputs, outputs=inputs, is_transposed=True) if is_transposed else site


def _is_expert(name: str, parameter: nn.Parameter, model: nn.Module) -> bool:
    """Since version 5, transformers keeps all experts of a block in one tensor `[experts, …, …]`."""
    if parameter.dim() != 3 or not name.rpartition(".")[0].rpartition(".")[2].endswith("experts"):
        return False
    return not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv1d)


def _output_embedding(model: nn.Module) -> str:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return next((name for name, module in model.named_modules() if head is not None and module is head), "")


def _tied_weights(model: nn.Module) -> set[str]:
    """Names of parameters that another name shares."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {n for group in names.values() if len(group) > 1 for n in group}


def lora_fingerprint(model: nn.Module) -> str:
    """Fingerprint of the names and shapes that a LoRA plan is made for."""
    return fingerprint("lora", shapes_of(model))
