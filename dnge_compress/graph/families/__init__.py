"""Architecture families, one file each: a file's name is its registration.

A family module offers `MODEL_TYPES` (values of `config.model_type`) and `build(config, shapes) -> ModelGraph`.
`derived` reads any other Hugging Face model from its config, and `traced` any `nn.Module`, given example inputs.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn
from transformers import PreTrainedModel

from dnge_compress.core.errors import DngeError, UnsupportedModelError
from dnge_compress.core.plugins import Registry
from dnge_compress.core.verbs import verb
from dnge_compress.core.wrappers import unwrapped
from dnge_compress.graph.builder import OtherArchitecture, shapes_of
from dnge_compress.graph.derivation.example_inputs import example_inputs as made_inputs
from dnge_compress.graph.types import ModelGraph

TRACED = "traced"
DERIVED = "derived"
IN_PYTHON = "no inputs for it can be made either, so that only Python can trace it: compress(model, example_inputs=…)"
FAMILIES = Registry(what="family", package=__name__, offers=("MODEL_TYPES", "build"))


@verb
def build_graph(model: nn.Module, example_inputs: object = None) -> ModelGraph:
    """Read a model as a dynamic graph: from its family, from its config, or by tracing it with `example_inputs`.

    `example_inputs` is a tensor, tuple or dict that the model can be called with; a Hugging Face model needs none.
    Raises UnsupportedModelError for a plain module without inputs, and where nothing was found that can go.

        graph = build_graph(AutoModel.from_pretrained("bert-base-uncased"))
    """
    model = unwrapped(model)
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    known = model_types()
    if model_type in known:
        try:
            return known[model_type].build(config, shapes_of(model))
        except OtherArchitecture:
            if not isinstance(model, PreTrainedModel):
                raise
    if not isinstance(model, PreTrainedModel):
        if example_inputs is None:
            raise UnsupportedModelError(
                f"a plain {type(model).__name__} says nothing about its architecture; pass example_inputs=… to trace it"
            )
        return FAMILIES.load(TRACED).build(model, example_inputs)
    try:
        architecture = FAMILIES.load(DERIVED).described_by(model)
    except UnsupportedModelError:
        if example_inputs is None:
            raise
        return FAMILIES.load(TRACED).build(model, example_inputs)
    try:
        graph: ModelGraph = FAMILIES.load(DERIVED).build(model, architecture)
    except UnsupportedModelError as e:
        inputs = example_inputs if example_inputs is not None else made_inputs(model)
        if inputs is None:
            raise UnsupportedModelError(f"{e}; {IN_PYTHON}") from None
        try:
            return FAMILIES.load(TRACED).build(model, inputs)
        except DngeError as traced:
            raise UnsupportedModelError(f"{e}; tracing it doesn't help: {traced}") from None
    if example_inputs is None or graph.of_kind("neuron", "head", "channel"):
        return graph
    # Where the config counts nothing but blocks, inputs are given so that widths are traced.
    return FAMILIES.load(TRACED).build(model, example_inputs)


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
