"""Architecture families, one file each: a file's name is its registration.

A family module offers `MODEL_TYPES` (values of `config.model_type`) and `build(config, shapes) -> ModelGraph`.
`traced` is the route for any other `nn.Module`, given example inputs.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn

from dnge_compress.core.errors import DngeError, UnsupportedModelError, nearest
from dnge_compress.core.plugins import Registry
from dnge_compress.graph.types import ModelGraph, Shapes

TRACED = "traced"
FAMILIES = Registry(what="family", package=__name__, offers=("MODEL_TYPES", "build"))


def build_graph(model: nn.Module, example_inputs: object = None) -> ModelGraph:
    """Read a model as a dynamic graph: from its family, or by tracing it with `example_inputs`.

    `example_inputs` is a tensor, tuple or dict that the model can be called with; when given to a model whose
    family is known, the family wins. Raises UnsupportedModelError for an unknown architecture without inputs.

        graph = build_graph(AutoModel.from_pretrained("bert-base-uncased"))
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    known = model_types()
    if model_type in known:
        return known[model_type].build(config, shapes_of(model))
    if example_inputs is not None:
        return FAMILIES.load(TRACED).build(model, example_inputs)
    what = f"architecture '{model_type}'" if model_type else f"a plain {type(model).__name__}"
    raise UnsupportedModelError(
        f"{what} has no family here ({nearest(str(model_type), known)}); pass example_inputs=… to trace it instead"
    )


def names() -> list[str]:
    """All families that read a Hugging Face config."""
    return [name for name in FAMILIES.names() if name != TRACED]


def model_types() -> dict[str, ModuleType]:
    """`config.model_type` → the family module that reads it. Raises DngeError where two families read the same."""
    found: dict[str, ModuleType] = {}
    for module in map(FAMILIES.load, names()):
        for model_type in module.MODEL_TYPES:
            if model_type in found:
                raise DngeError(
                    f"{found[model_type].__name__} and {module.__name__} both read model type '{model_type}'; "
                    "uninstall the package of one of them"
                )
            found[model_type] = module
    return found


def shapes_of(model: nn.Module) -> Shapes:
    """Names and shapes of every parameter and buffer that a checkpoint holds."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}
