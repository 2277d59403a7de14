"""Every family's graph against the tensors, against torch-pruning, and against what the network computes."""

from __future__ import annotations

from collections.abc import Iterable

import models
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from dnge_compress.core.deadline import deadline
from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph import families
from dnge_compress.graph.families import build_graph, traced
from dnge_compress.graph.masking import zeroed
from dnge_compress.graph.types import PRUNABLE, ModelGraph, Slot, Space

MULTI_HEAD = ("bert", "bert_mlm", "roberta", "vit")
GROUPED = ("llama", "llama_bias", "mistral", "qwen2", "qwen3")
# torch-pruning can't trace GPT-2: transformers' Conv1D is not one of its types.
TRACEABLE = tuple(name for name in models.FAMILIES if name != "gpt2")
LATE = UnsupportedModelError("too late")


def test_every_family_file_has_a_tiny_model() -> None:
    covered = {tiny.family for tiny in models.MODELS.values()} | {families.DERIVED}
    assert set(families.names()) <= covered


@pytest.mark.parametrize("name", models.MODELS)
def test_slots_lie_inside_their_tensors_and_cover_each_axis_once(name: str) -> None:
    model = models.make(name)
    graph = models.graph_of(name, model)
    rows: dict[tuple[str, int], list[int]] = {}
    for slot in graph.slots:
        units = torch.arange(graph.space(slot.space).units)
        rows.setdefault((slot.param, slot.axis), []).extend(slot.rows(units).tolist())
    state = model.state_dict()
    for (param, axis), covered in rows.items():
        assert sorted(covered) == list(range(state[param].shape[axis])), (param, axis)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_prunable_space_is_written_and_read(name: str) -> None:
    graph = models.graph_of(name, models.make(name))
    spaces = prunable(graph)
    assert spaces
    for space in spaces:
        assert graph.consumers(space.name), f"nothing reads {space.name}"
        assert producers(graph, space.name), f"nothing writes {space.name}"


@pytest.mark.parametrize("name", models.MODELS)
def test_steps_name_known_spaces_and_use_every_slot(name: str) -> None:
    graph = models.graph_of(name, models.make(name))
    assert [s.index for s in graph.steps] == list(range(len(graph.steps)))
    for step in graph.steps:
        for space in (*step.reads, *step.writes):
            graph.space(space)
    for slot in graph.slots:
        step = graph.step_of(slot.param)
        assert slot.space in (step.reads if graph.consumes(slot) else step.writes) or step.op == "embed"


@pytest.mark.parametrize("name", models.MODELS)
def test_layer_spaces_name_blocks_that_exist(name: str) -> None:
    model = models.make(name)
    spaces = models.graph_of(name, model).of_kind("layer")
    assert spaces or not models.MODELS[name].family
    for space in spaces:
        for path in space.modules:
            assert list(model.get_submodule(path).parameters())


@pytest.mark.parametrize("name", models.MODELS)
def test_producers_reach_the_output_only_through_our_consumers(name: str) -> None:
    """With a unit's consumers at zero, whatever writes the unit can hold anything: no slot is missing."""
    model, inputs = models.make(name), models.example_inputs(name)
    graph = models.graph_of(name, model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    generator = torch.Generator().manual_seed(2)
    dense = run(model, inputs, {})
    for space in prunable(graph):
        effects = []
        for unit in {0, space.units // 2, space.units - 1}:
            gone = torch.tensor([unit])
            masked: dict[str, Tensor] = {}
            for slot in graph.consumers(space.name):
                masked[slot.param] = zeroed(masked.get(slot.param, state[slot.param]), slot, gone)
            other: dict[str, Tensor] = {}
            for slot in producers(graph, space.name):
                before = other.get(slot.param, masked.get(slot.param, state[slot.param]))
                other[slot.param] = scrambled(before, slot, unit, generator)
            expected = run(model, inputs, masked)
            torch.testing.assert_close(run(model, inputs, {**masked, **other}), expected, msg=f"{space.name} {unit}")
            unmasked = {p: t for p, t in other.items() if p not in masked}
            effects.append(not torch.allclose(run(model, inputs, unmasked), dense))
        assert any(effects), f"writing {space.name} does nothing: the test says nothing"  # one dead ReLU is no matter


@pytest.mark.parametrize("name", TRACEABLE)
def test_inner_slots_equal_torch_prunings_groups(name: str) -> None:
    model = models.make(name)
    graph, theirs = build_graph(model), dependency_graph(model, name)
    spaces = graph.of_kind("neuron", "channel")
    assert spaces
    for space in spaces:
        for unit in {0, space.units // 2, space.units - 1}:
            assert group_of(theirs, model, graph, space, unit) == our_rows(graph, space, unit), (space.name, unit)


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_head_slots_equal_torch_prunings_groups_where_every_head_has_its_key_and_value(name: str) -> None:
    model = models.make(name)
    graph, theirs = build_graph(model), dependency_graph(model, name)
    assert graph.of_kind("head")
    for space in graph.of_kind("head"):
        for unit in range(space.units):
            assert group_of(theirs, model, graph, space, unit) == our_rows(graph, space, unit), (space.name, unit)


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_heads_tie_the_matrices_that_torch_pruning_ties(name: str) -> None:
    """Without `num_heads` torch-pruning copies q's row numbers to k and v, so with grouped queries only the set of
    matrices can be compared; the rows are what the test of producers and consumers proves."""
    model = models.make(name)
    graph, theirs = build_graph(model), dependency_graph(model, name)
    assert graph.of_kind("head")
    for space in graph.of_kind("head"):
        expected = {(param, axis) for param, axis, _ in group_of(theirs, model, graph, space, 0)}
        assert {(param, axis) for param, axis, _ in our_rows(graph, space, 0)} == expected


@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_graph_needs_no_values(name: str) -> None:
    model = models.make(name)
    assert build_graph(model.to("meta")) == build_graph(models.make(name))


def test_the_fingerprint_is_of_names_and_shapes_not_of_values() -> None:
    model = models.make("llama")
    other = models.roughened(models.make("llama"), seed=3)
    narrow = LlamaForCausalLM(LlamaConfig(**{**models.DECODER, "intermediate_size": 36}))
    assert hash(build_graph(model)) == hash(build_graph(other))
    assert build_graph(model).fingerprint == build_graph(other).fingerprint
    assert build_graph(model).fingerprint != build_graph(narrow).fingerprint


def test_a_plain_module_without_inputs_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Sequential.*example_inputs"):
        build_graph(models.make("mlp"))


def test_the_last_stage_of_a_resnet_without_classifier_is_its_output_and_stays() -> None:
    graph = build_graph(models.make("resnet_bare"))
    assert graph.space("stage.1").kind == "fixed"
    assert graph.space("stage.0").kind == "channel"


@pytest.mark.parametrize("name", ["resnet_basic", "resnet_bottleneck", "resnet_bare", "vit"])
def test_tracing_finds_the_familys_slots(name: str) -> None:
    model = models.make(name)
    known, found = build_graph(model), traced.build(model, models.example_inputs(name))
    theirs = {slots_without_space(found, s.name) for s in prunable(found)}
    for space in known.of_kind("neuron", "channel", "head"):
        assert slots_without_space(known, space.name) in theirs, space.name


def prunable(graph: ModelGraph) -> list[Space]:
    return [s for s in graph.of_kind(*PRUNABLE) if s.kind != "layer"]


def producers(graph: ModelGraph, space: str) -> list[Slot]:
    return [s for s in graph.slots_of(space) if not graph.consumes(s)]


def slots_without_space(graph: ModelGraph, space: str) -> frozenset[tuple[str, int, int, int]]:
    return frozenset((s.param, s.axis, s.width, s.offset) for s in graph.slots_of(space))


def our_rows(graph: ModelGraph, space: Space, unit: int) -> set[tuple[str, int, int]]:
    """(weight, axis, row) of one unit; biases and norms' other tensors go with their module's weight."""
    return {
        (s.param, s.axis, row)
        for s in graph.slots_of(space.name)
        if s.param.endswith(".weight")
        for row in s.rows(torch.tensor([unit])).tolist()
    }


def group_of(
    theirs: tp.DependencyGraph, model: nn.Module, graph: ModelGraph, space: Space, unit: int
) -> set[tuple[str, int, int]]:
    """What torch-pruning takes along when the rows of `unit` go from the space's first producer."""
    root = producers(graph, space.name)[0]
    module = model.get_submodule(root.param.rpartition(".")[0])
    prune = theirs.get_pruner_of_module(module).prune_out_channels
    names = {m: path for path, m in model.named_modules()}
    with deadline(10, LATE):
        group = theirs.get_pruning_group(module, prune, root.rows(torch.tensor([unit])).tolist())
    found = set()
    for dependency, rows in group:
        target = dependency.target.module
        if target in names and list(target.parameters()):
            reads = isinstance(target, nn.Linear | nn.Conv2d) and not theirs.is_out_channel_pruning_fn(
                dependency.handler
            )
            found |= {(f"{names[target]}.weight", int(reads), row) for row in rows}
    return found


def dependency_graph(model: nn.Module, name: str) -> tp.DependencyGraph:
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    with deadline(10, LATE):
        return tp.DependencyGraph().build_dependency(
            model,
            models.example_inputs(name),
            output_transform=lambda out: out.logits if "logits" in out else out.last_hidden_state,
            customized_pruners={},
            ignored_layers=[],
            ignored_params=[],
            verbose=False,
        )


def run(model: nn.Module, inputs: object, tensors: dict[str, Tensor]) -> Tensor:
    return models.outputs(lambda *a, **k: functional_call(model, tensors, a, k), inputs)


def scrambled(tensor: Tensor, slot: Slot, unit: int, generator: torch.Generator) -> Tensor:
    """Other values in the rows of `unit`; positive ones for a running variance."""
    rows: Iterable[int] = slot.rows(torch.tensor([unit])).tolist()
    tensor = tensor.detach().clone()
    for row in rows:
        target = tensor.select(slot.axis, row)
        values = 2 * torch.randn(target.shape, generator=generator)
        target.copy_(values.abs() + 0.1 if slot.param.endswith("running_var") else values)
    return tensor
