"""Surgery: carry out cuts on a model in place, driven by the slots of its graph."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dnge_compress.core.paging import Keep, as_it_is
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.derivation.layers import moved_up
from dnge_compress.graph.layer_types import BATCH_NORMS, CONVS, TRANSPOSED, is_depthwise


def cut(model: nn.Module, applied: AppliedCuts, keep: Keep = as_it_is) -> None:
    """Remove everything that the cuts don't keep from `model`, in place, and bring its config and attributes up to
    date. `keep` says where a smaller tensor lies."""
    for param in applied.params:
        _replace(model, param, applied, keep)
    for module in {param.rpartition(".")[0] for param in applied.params}:
        update_sizes(model.get_submodule(module))
    for c in applied.module_cuts:
        space = applied.graph.space(c.space)
        _drop_modules(model, space.modules, c.keep)
        if space.kind == "layer":
            _renumber(model, space.modules[: len(c.keep)])
    _update_attributes(model, applied)
    _update_config(model, applied)
    _forget(model)


def _forget(model: nn.Module) -> None:
    """Let modules drop what they worked out of their weights for inference (LeViT's biases): they do as training
    begins."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        if type(module).train is not nn.Module.train:
            module.train()
    for module, mode in modes:
        module.training = mode


def _replace(model: nn.Module, name: str, applied: AppliedCuts, keep: Keep) -> None:
    """Put what is left of a tensor in the place of its parameter or buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old: Tensor = getattr(module, leaf)
    new = keep(applied.remaining(name, old.data).contiguous())
    setattr(module, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def update_sizes(module: Any) -> None:
    """The sizes that a layer of torch or transformers keeps beside its weight."""
    if isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, TRANSPOSED):
        if is_depthwise(module):
            module.groups = len(module.weight)
        module.in_channels, module.out_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, CONVS):
        if is_depthwise(module):
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, BATCH_NORMS):
        held = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(held) if held is not None else module.num_features
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.RNNBase):
        module.flatten_parameters()
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape


def _drop_modules(model: nn.Module, modules: tuple[str, ...], keep: tuple[int, ...]) -> None:
    """Leave out numbered modules of one parent; those that stay take the first numbers."""
    parent = model.get_submodule(modules[0].rpartition(".")[0])
    names = [path.rpartition(".")[2] for path in modules]
    kept = [parent.get_submodule(names[i]) for i in keep]
    for name in names:
        delattr(parent, name)
    for name, module in zip(names, kept, strict=False):
        parent.add_module(name, module)


def _renumber(model: nn.Module, blocks: Iterable[str]) -> None:
    """Blocks know their number: attention finds its cache by it."""
    module: Any
    for index, path in enumerate(blocks):
        for module in model.get_submodule(path).modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index


def _update_attributes(model: nn.Module, applied: AppliedCuts) -> None:
    """Counts that modules keep for themselves; where a block went, its attributes went with it."""
    fewer: dict[tuple[str, str], Fraction] = {}
    for space, module, name, factor in applied.graph.attributes:
        path = applied.path_after(module)
        if space in applied.counts and path is not None:
            gone = applied.graph.space(space).units - applied.kept(space)
            fewer[(path, name)] = fewer.get((path, name), Fraction(0)) + factor * gone
    for (path, name), change in fewer.items():
        owner = model.get_submodule(path)
        setattr(owner, name, int(getattr(owner, name) - change))


def _update_config(model: nn.Module, applied: AppliedCuts) -> None:
    """Write the config keys whose spaces all agree; an uneven width can't be written and stays with the plan."""
    config = getattr(model, "config", None)
    if config is None:
        return
    for (key, index), value in applied.config_values.items():
        owner, name = _owner_of(config, key)
        if index is not None:
            values = list(_read(owner, name))
            values[index] = value
            value = values
        _write(owner, name, value)
    fields = {space: f for f in applied.graph.config_fields for space in f.spaces}
    for c in applied.module_cuts:
        field, units = fields.get(c.space), applied.graph.space(c.space).units
        if field is None:
            continue
        for key in field.lists:
            owner, name = _owner_of(config, key)
            _write(owner, name, [_read(owner, name)[i] for i in c.keep])
        for key in field.index_lists:
            owner, name = _owner_of(config, key)
            _write(owner, name, moved_up(_read(owner, name), c.gone(units).tolist()))
        _rename_stages(_owner_of(config, field.key)[0], units, len(c.keep))


def _rename_stages(config: Any, before: int, after: int) -> None:
    """A backbone's config names the stem and every block; which of them are outputs is its default again."""
    names = getattr(config, "stage_names", None)
    if names is not None and len(names) == before + 1:
        config.stage_names = names[: after + 1]
        config.set_output_features_output_indices(out_features=None, out_indices=None)


def _owner_of(config: Any, key: str) -> tuple[Any, str]:
    """The (nested) config, or dict in it, that holds a dotted key, and the key's own name."""
    *path, name = key.split(".")
    for part in path:
        config = _read(config, part)
    return config, name


def _read(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


def _write(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
