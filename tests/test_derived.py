"""Families that nobody wrote: what is derived from a config holds on the real model, for a sample of architectures.

All of them run with `make test-slow`, against the outcomes that benchmarks/architectures.py wrote down.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from peft import get_peft_model
from recorded import IS_RECORDED
from tiny_architectures import ARCHITECTURES, inputs_of, main_output
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import dnge_compress as dnge
from dnge_compress.core.errors import BudgetError, PlanError, UnsupportedModelError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.derivation.architecture import Architecture, outline_of
from dnge_compress.graph.derivation.axes import counted_axes
from dnge_compress.graph.derivation.config_keys import as_dict, changed, number_keys, spelled, value_at
from dnge_compress.graph.derivation.example_inputs import example_inputs
from dnge_compress.graph.derivation.layers import moved_up
from dnge_compress.graph.derivation.small_copy import small_copy
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.families.derived import build as build_derived
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import ConfigField, Cut, ModelGraph
from dnge_compress.report.sizes import macs_of
from dnge_compress.signals.moments import gather_signals
from dnge_compress.signals.work import macs_per_element
from dnge_compress.surgery.cut import cut

SAMPLE = (
    "phi3",
    "opt",
    "gemma2",
    "mixtral",
    "gpt_oss",
    "distilbert",
    "modernbert",
    "t5",
    "whisper",
    "dinov2",
    "swin",
    "clip",
)
RECORDED = json.loads((architectures.RESULTS / "architectures.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SAMPLE)
def test_the_line_holds_for_architectures_without_a_family(name: str) -> None:
    check_outcomes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in SAMPLE])
def test_the_line_holds_for_every_architecture(name: str) -> None:
    check_outcomes(name)


def check_outcomes(name: str) -> None:
    for kind in architectures.KINDS:
        outcome = architectures.tried(ARCHITECTURES[name], kind)
        if IS_RECORDED:
            assert outcome.word == RECORDED[name][kind]["word"], (kind, outcome)
        assert outcome.word in ("plain", "uneven", "refused"), (kind, outcome)


def test_nothing_silently_wrong_was_recorded() -> None:
    words = {row[kind]["word"] for row in RECORDED.values() for kind in architectures.KINDS}
    assert RECORDED.keys() == ARCHITECTURES.keys()
    assert words <= {"plain", "uneven", "refused"}


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "vit"])
def test_the_derivation_says_of_written_families_what_they_say(name: str) -> None:
    model = ARCHITECTURES[name].build()
    written, derived = build_graph(model), build_derived(model)
    assert prunable(written) == prunable(derived)
    assert fields(written) == fields(derived)
    assert [(s.op, s.params) for s in written.steps] == [(s.op, s.params) for s in derived.steps]


@pytest.mark.parametrize("name", ["gpt2", "bert_mlm", "roberta"])
def test_the_derivation_leaves_out_only_heads_that_a_written_family_fixes(name: str) -> None:
    model = ARCHITECTURES[name].build()
    written, derived = prunable(build_graph(model)), prunable(build_derived(model))
    assert {n: slots for n, slots in written.items() if not n.startswith("heads")} == derived


def test_numbers_of_heads_that_a_config_refuses_are_left_out() -> None:
    tiny = ARCHITECTURES["llama"]
    six = {**tiny.config, "num_attention_heads": 6, "num_key_value_heads": 6}
    graph = build_derived(LlamaForCausalLM(LlamaConfig(**six)))
    heads = next(f for f in graph.config_fields if f.key == "num_attention_heads")
    assert [n for n in range(1, 7) if heads.allows(n)] == [1, 2, 3, 4, 6]  # five don't divide a hidden size of 48


def prunable(graph: ModelGraph) -> dict[str, set[tuple[str, int, int, int]]]:
    """Rows of every space that can be cut, by name."""
    return {
        s.name: {(x.param, x.axis, x.width, x.offset) for x in graph.slots_of(s.name)}
        for s in graph.of_kind("neuron", "head", "channel")
    } | {s.name: {(m, 0, 0, 0) for m in s.modules} for s in graph.of_kind("layer")}


def fields(graph: ModelGraph) -> set[tuple[str, tuple[str, ...], int]]:
    return {(f.key, f.spaces, int(f.factor)) for f in graph.config_fields}


def test_fused_matrices_are_cut_in_each_of_their_parts() -> None:
    graph = build_graph(ARCHITECTURES["phi3"].build())
    gate_up = [s for s in graph.slots_of("ffn.0") if "gate_up" in s.param]
    qkv = [s for s in graph.slots_of("heads.0") if "qkv" in s.param]
    assert [(s.width, s.offset) for s in gate_up] == [(1, 0), (1, 80)]
    assert [(s.width, s.offset) for s in qkv] == [(24, 0), (12, 48), (12, 72)]


def test_interleaved_gates_are_units_of_two_rows() -> None:
    graph = build_graph(ARCHITECTURES["gpt_oss"].build())
    space = graph.of_kind("neuron")[0].name
    assert {(s.width, s.offset) for s in graph.slots_of(space) if s.param.endswith("gate_up_proj")} == {(2, 0)}


def test_every_expert_keeps_neurons_of_its_own() -> None:
    model = ARCHITECTURES["mixtral"].build()
    graph = build_graph(model)
    experts = [s for s in graph.of_kind("neuron") if s.layer == 0]
    keeps = [tuple(range(i, i + 40)) for i in range(len(experts))]
    applied = AppliedCuts(graph, tuple(Cut(s.name, k) for s, k in zip(experts, keeps, strict=True)))
    inputs = inputs_of("tokens")
    expected = MaskedModel(model, applied)(**inputs).logits
    weights = model.model.layers[0].mlp.experts.down_proj.detach().clone()
    cut(model, applied)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    left = model.model.layers[0].mlp.experts.down_proj
    assert left.shape == (4, 48, 40)
    torch.testing.assert_close(left[3], weights[3][:, list(keeps[3])])


def test_module_attributes_are_those_of_a_model_built_anew() -> None:
    for name, kind in (
        ("mixtral", "neuron"), ("mixtral", "expert"), ("gpt_oss", "neuron"), ("llama4_text", "expert"),
        ("mobilevitv2", "channel"), ("gemma2", "head"), ("t5", "head"),
    ):  # fmt: skip
        tiny = ARCHITECTURES[name]
        small: Any = dnge.compress(
            tiny.build(), ratio=0.3, of="units", kinds=[kind], scorer="random", tokens=128, length=16, compensate="none"
        )
        anew = type(small)(small.config)
        ours, theirs = outline_of(small).counts, outline_of(anew).counts
        assert {k: v for k, v in ours.items() if theirs.get(k, v) != v} == {}, (name, kind)


def test_padding_counts_nowhere_in_the_moments() -> None:
    for name in ("mixtral", "qwen2_moe", "opt"):
        model = ARCHITECTURES[name].build()
        graph = build_graph(model)
        ids = inputs_of("tokens")["input_ids"]
        mask = torch.ones_like(ids)
        mask[:, 6:] = 0
        padded = gather_signals(model, graph, [{"input_ids": ids, "attention_mask": mask}])
        alone = gather_signals(model, graph, [{"input_ids": ids[:, :6]}])
        for space, signals in padded.items():
            for ours, theirs in zip(signals, alone[space], strict=True):
                assert ours.count == theirs.count, (name, space)
                torch.testing.assert_close(ours.covariance, theirs.covariance, atol=1e-4, rtol=1e-4)


def test_experts_with_different_widths_are_refused() -> None:
    graph = build_graph(ARCHITECTURES["mixtral"].build())
    space = graph.of_kind("neuron")[0].name
    with pytest.raises(PlanError, match=r"lie in one tensor; let all keep as many"):
        AppliedCuts(graph, (Cut(space, tuple(range(40))),))


@pytest.mark.parametrize("options", [{"scorer": "encoder"}, {"of": "macs", "scorer": "obs"}, {"kinds": ["expert"]}])
def test_a_mixture_goes_through_every_scorer_and_price(options: dict[str, Any]) -> None:
    small = dnge.compress(ARCHITECTURES["mixtral"].build(), **{"ratio": 0.2, "tokens": 256, "length": 16} | options)
    assert 0 < small.dnge.plan.params_after < small.dnge.plan.params_before
    report = small.dnge.report
    assert sum(r.params_before for r in report.rows if r.kind == "neuron") < small.dnge.plan.params_before


def test_the_work_of_experts_is_counted() -> None:
    model = ARCHITECTURES["mixtral"].build()
    inputs = {"input_ids": inputs_of("tokens")["input_ids"][:1]}
    prices = macs_per_element(model, build_graph(model), inputs)
    linear = sum(prices.get(n, 0.0) * p.numel() for n, p in model.named_parameters())
    assert linear < macs_of(model, inputs) < 1.1 * linear  # attention's own products come on top


def test_a_correction_that_a_router_learned_goes_with_its_expert() -> None:
    model = ARCHITECTURES["glm4_moe"].build()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
    small = dnge.compress(model, ratio=0.25, of="units", kinds=["expert"], scorer="random", tokens=128, length=16)
    assert small.config.n_routed_experts == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["whisper", "wav2vec2", "phi3"])
def test_other_precisions_are_compressed(name: str, dtype: torch.dtype) -> None:
    model = ARCHITECTURES[name].build().to(dtype)
    small = dnge.compress(model, ratio=0.2, kinds=["neuron"], tokens=256, length=16)
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_reading_a_model_leaves_its_mode_its_statistics_and_the_random_numbers_alone() -> None:
    model = ARCHITECTURES["mobilenet_v2"].build().train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build_graph(model)
    torch.testing.assert_close(torch.rand(3), expected)
    assert model.training
    for n, b in model.named_buffers():
        torch.testing.assert_close(b, before[n])


def test_lists_of_block_numbers_move_up() -> None:
    assert moved_up([0, 2, 5], (2, 3)) == [0, 3]


def test_a_ratio_that_serves_stages_of_several_widths_ties_them() -> None:
    small = dnge.compress(
        ARCHITECTURES["swin"].build(), ratio=0.3, of="units", kinds=["neuron"], tokens=256, scorer="magnitude"
    )
    assert small.config.mlp_ratio != 2.5
    widths = {
        len(c.keep) / build_graph(ARCHITECTURES["swin"].build()).space(c.space).units for c in small.dnge.plan.cuts
    }
    assert len(widths) == 1
    assert isinstance(small.config.mlp_ratio, float)


def test_a_list_with_an_entry_per_layer_loses_the_entry_of_the_layer_that_goes() -> None:
    model = ARCHITECTURES["gemma2"].build()
    kinds = list(model.config.layer_types)
    graph = build_graph(model)
    cut(model, AppliedCuts(graph, (Cut("layers", (1, 2)),)))
    assert model.config.layer_types == kinds[1:]
    assert model.config.num_hidden_layers == 2


def test_the_only_block_of_its_kind_stays() -> None:
    graph = build_graph(ARCHITECTURES["lfm2"].build())  # two convolutions and one attention
    assert graph.space("layers").protected == (1,)


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (Gemma2ForCausalLM, Gemma2Config(num_hidden_layers=26)),
        (
            OPTForCausalLM,
            OPTConfig(
                hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=4096
            ),
        ),
        (Qwen3MoeForCausalLM, Qwen3MoeConfig(num_hidden_layers=24, num_experts=64)),
    ],
)
def test_a_model_of_billions_is_read_from_its_outline_alone(cls: type[nn.Module], config: Any) -> None:
    with torch.device("meta"):
        model = cls(config)
    graph = build_graph(model)
    neurons = graph.of_kind("neuron")
    width = getattr(
        config, "moe_intermediate_size", getattr(config, "ffn_dim", getattr(config, "intermediate_size", 0))
    )
    assert {s.units for s in neurons} == {width}
    assert graph.space("layers").units == config.num_hidden_layers
    experts = getattr(config, "num_experts", None)
    assert {s.units for s in graph.of_kind("expert")} == ({experts} if experts else set())


def test_ratios_may_be_fractions_and_are_what_the_model_reads() -> None:
    field = ConfigField(key="mlp_ratio", spaces=("a",), factor=Fraction(1, 1408), is_ratio=True)
    assert all(int(1408 * field.value(kept)) == kept and field.allows(field.value(kept)) for kept in range(1, 5633))


def test_a_small_copy_has_the_same_tensors_and_few_numbers() -> None:
    config = OPTConfig(
        hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=4096
    )
    architecture = Architecture(OPTForCausalLM, OPTConfig)
    copy = small_copy(architecture, as_dict(config))
    assert copy is not None
    assert sum(p.numel() for p in copy.model.parameters()) < 2_000_000
    names = {n for n, _ in copy.model.named_parameters()}
    assert "model.decoder.layers.4.fc1.weight" in names


def test_a_default_behind_none_is_written_out() -> None:
    tiny = ARCHITECTURES["gpt2"]
    config = as_dict(tiny.build().config) | {"n_inner": None}
    architecture = Architecture(type(tiny.build()), type(tiny.build().config))
    found = [c for c in counted_axes(architecture, config) if c.label == "n_inner"]
    assert [c.units for c in found] == [192]
    assert found[0].values(100) == {("n_inner",): 100}


def test_a_width_behind_none_is_cut_and_reloads(tmp_path: Path) -> None:
    model = ARCHITECTURES["gptj"].build()
    wide = type(model)(type(model.config)(**{**ARCHITECTURES["gptj"].config, "n_inner": None}))
    small = dnge.compress(wide, ratio=0.3, kinds=["neuron"], tokens=256)
    dnge.save(small, tmp_path / "out")
    assert type(small).from_pretrained(tmp_path / "out").config.n_inner < 192


def test_numbers_are_found_in_nested_configs_and_lists() -> None:
    config = {
        "text": {"width": 4, "token_ids": [1, 2], "sizes": [3, 5]},
        "eos_token_id": 2,
        "flag": True,
        "mlp_ratio": 2.5,
    }
    keys = [spelled(key) for key in number_keys(config)]
    assert keys == ["text.width", "text.sizes[0]", "text.sizes[1]", "mlp_ratio"]
    new = changed(config, {("text", "sizes", 1): 7})
    assert (value_at(new, ("text", "sizes", 1)), value_at(config, ("text", "sizes", 1))) == (7, 5)


@pytest.mark.parametrize("name", ["llama", "bert_mc", "t5", "whisper", "wav2vec2", "vit", "videomae", "clip"])
def test_inputs_are_made_for_every_modality(name: str) -> None:
    inputs = example_inputs(ARCHITECTURES[name].build())
    assert inputs is not None
    assert inputs.keys() - {"attention_mask"} == inputs_of(ARCHITECTURES[name].inputs).keys() - {"attention_mask"}


def test_heads_that_no_number_counts_are_refused() -> None:
    model = DistilBertModel(DistilBertConfig(vocab_size=50, dim=24, hidden_dim=28, n_heads=3, n_layers=1))
    with pytest.raises(BudgetError, match="heads stay: n_heads: the size of a head follows from their number"):
        dnge.compress(model, kinds=["head"], tokens=128)


def test_why_a_kind_stays_is_said() -> None:
    with pytest.raises(BudgetError, match=r"neurons stay: intermediate_size: the rows of a unit in '.*gate_proj"):
        dnge.compress(ARCHITECTURES["bitnet"].build(), kinds=["neuron"], tokens=128)
    model = ARCHITECTURES["deepseek_v3"].build()
    fewer = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
    four = type(model)(type(model.config)(**{**ARCHITECTURES["deepseek_v3"].config, **fewer}))
    with pytest.raises(BudgetError, match=r"experts stay: n_routed_experts: a token goes to nearly all experts"):
        dnge.compress(four, kinds=["expert"], tokens=128)  # two of each of two groups, which the router compares


def test_a_model_whose_sizes_are_not_its_configs_is_refused() -> None:
    model = ARCHITECTURES["opt"].build()
    model.model.decoder.layers[0].fc1 = nn.Linear(48, 72)
    model.model.decoder.layers[0].fc2 = nn.Linear(72, 48)
    with pytest.raises(UnsupportedModelError, match=r"fc1.*\(72, 48\).*\(80, 48\)"):
        build_graph(model)


def test_a_checkpoint_of_another_architecture_goes_through_the_whole_line(tmp_path: Path) -> None:
    tiny = ARCHITECTURES["opt"]
    small = dnge.compress(tiny.build(), ratio=0.3, tokens=512)
    dnge.save(small, tmp_path / "out")
    again = type(small).from_pretrained(tmp_path / "out")
    inputs = inputs_of(tiny.inputs)
    with torch.no_grad():
        torch.testing.assert_close(main_output(again(**inputs)), main_output(small(**inputs)))
    assert small.config.ffn_dim < 80


@pytest.mark.parametrize("name", ["mamba", "phimoe", "distilbert_cls", "bert_qa", "t5", "mixtral", "dinov2"])
def test_lora_is_placed_where_peft_takes_it(name: str) -> None:
    tiny = ARCHITECTURES[name]
    model, inputs = tiny.build(), inputs_of(tiny.inputs)
    with torch.no_grad():
        before = main_output(model(**inputs))
        plan = dnge.place_lora(model, budget={"trainable_params": 4000})
        adapted = get_peft_model(model, plan.lora_config(tiny.task)).eval()
        torch.testing.assert_close(main_output(adapted(**inputs)), before)
    trained = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and "lora_" in n)
    assert 0 < trained <= 4000


def test_blocks_of_an_encoder_stay_where_the_decoder_could_not_generate_any_more() -> None:
    config = {**ARCHITECTURES["t5"].config, "num_layers": 3, "num_decoder_layers": 3}
    graph = build_graph(T5ForConditionalGeneration(T5Config(**config)))
    assert [s.modules[0] for s in graph.of_kind("layer")] == ["decoder.block.0"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phi3", {"uneven": True, "allocation": "global"}),
        ("mixtral", {"uneven": True, "allocation": "global", "kinds": ["neuron"]}),
        ("t5", {"uneven": True, "allocation": "global"}),
    ],
)
def test_uneven_plans_keep_what_modules_read_from_the_config_even(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    small = dnge.compress(ARCHITECTURES[name].build(), ratio=0.2, tokens=256, length=16, **options)
    dnge.save(small, tmp_path / "out")
    inputs = inputs_of(ARCHITECTURES[name].inputs)
    with torch.no_grad():
        torch.testing.assert_close(main_output(dnge.load(tmp_path / "out")(**inputs)), main_output(small(**inputs)))


def test_a_model_whose_config_counts_nothing_but_blocks_loses_blocks_or_is_traced() -> None:
    model = ARCHITECTURES["bloom"].build()
    small = dnge.compress(model, ratio=0.3, tokens=256, length=16)
    assert not small.dnge.plan.uneven
    assert any("example_inputs" in note for note in small.dnge.plan.notes)
    traced = dnge.compress(model, ratio=0.2, tokens=256, length=16, example_inputs=inputs_of("tokens"))
    assert traced.dnge.plan.uneven


def test_a_gain_for_every_head_is_read_by_the_encoder() -> None:
    config = CohereConfig(**{**ARCHITECTURES["cohere"].config, "use_qk_norm": True})
    assert dnge.compress(CohereForCausalLM(config), ratio=0.2, tokens=256, length=16).dnge.plan.cuts
