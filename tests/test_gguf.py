"""GGUF: what `align: gguf` gives fits the blocks of every quantisation, and a pruned Llama goes there and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dnge_compress import compress, save

gguf = pytest.importorskip("gguf", reason="GGUF isn't checked: install the extra export")

BLOCKED = {kind: sizes[0] for kind, sizes in gguf.GGML_QUANT_SIZES.items() if sizes[0] > 1}
# Rows of 768 and 1,024 values: whole blocks of every kind, as in the models that people quantise.
WIDE = {"hidden_size": 768, "intermediate_size": 1024, "num_attention_heads": 12, "num_key_value_heads": 12}
CUT: dict[str, Any] = {"ratio": 0.45, "of": "units", "kinds": ["neuron", "head"], "scorer": "random", "tokens": 64}


def wide_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**models.DECODER | WIDE | {"num_hidden_layers": 2})).eval()


def compressed(**options: Any) -> Any:
    return compress(wide_llama(), **CUT, compensate="none", **options)


def misfits(model: torch.nn.Module) -> set[tuple[str, str]]:
    """Last names of matrices, and kinds of quantisation whose blocks don't divide their rows."""
    found = set()
    for name, matrix in model.named_parameters():
        for kind in BLOCKED if matrix.dim() > 1 else ():
            try:
                gguf.quants.quant_shape_to_byte_shape(matrix.shape, kind)
            except ValueError:
                found.add((name.split(".")[-2], kind.name))
    return found


def test_aligned_widths_are_whole_blocks_of_every_quantisation() -> None:
    free, aligned = compressed(), compressed(align="gguf")
    assert {name for name, _ in misfits(free)} == {"down_proj", "o_proj"}  # what reads neurons, and what reads heads
    assert misfits(aligned) == set()
    assert aligned.config.intermediate_size < 1024 and aligned.config.num_attention_heads < 12


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "TQ2_0"])
def test_pruned_matrices_are_written_in_blocks_and_read_back(kind: str, tmp_path: Path) -> None:
    small, kind_ = compressed(align="gguf"), gguf.GGMLQuantizationType[kind]
    block = BLOCKED[kind_]
    matrices = {
        n: p.detach().numpy() for n, p in small.named_parameters() if n.endswith(("down_proj.weight", "o_proj.weight"))
    }
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, matrix in matrices.items():
        writer.add_tensor(name, gguf.quants.quantize(matrix, kind_), raw_dtype=kind_)
    finish(writer)
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert read.keys() == matrices.keys()
    for name, matrix in matrices.items():
        assert tuple(read[name].shape[::-1]) == matrix.shape and read[name].tensor_type == kind_
        got = gguf.quants.dequantize(read[name].data, kind_)
        largest = np.abs(matrix.reshape(-1, block)).max(axis=1, keepdims=True)
        step = {"Q4_0": 1 / 8, "Q8_0": 1 / 254, "TQ2_0": 1 / 2}[kind]  # Q4_0 has 8 steps to one side, 7 to the other
        assert (np.abs(got - matrix).reshape(-1, block) <= largest * (step + 1e-3)).all()


def test_a_pruned_llama_quantised_to_gguf_is_the_one_that_transformers_reads(tmp_path: Path) -> None:
    small = compressed(align="gguf")
    plain = AutoModelForCausalLM.from_pretrained(save(small, tmp_path / "out"))
    expected = copy.deepcopy(small)
    write_llama(plain, expected, tmp_path / "m.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    assert read.config.intermediate_size == small.config.intermediate_size
    assert read.config.num_attention_heads == small.config.num_attention_heads
    answers = [models.outputs(model, models.tokens()) for model in (read, expected, small)]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)
    assert torch.cosine_similarity(answers[1], answers[2], dim=-1).min() > 0.99 and not answers[1].equal(answers[2])


def write_llama(model: Any, rounded: torch.nn.Module, path: Path) -> None:
    """Write a Llama as llama.cpp's converter does, matrices in Q8_0; `rounded` gets the values that were written."""
    config, kind = model.config, gguf.GGMLQuantizationType.Q8_0
    heads, width = config.num_attention_heads, config.head_dim
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        called = names.get_name(name, try_suffixes=(".weight",))
        assert called, name
        values = parameter.detach().numpy()
        if values.ndim == 1:
            writer.add_tensor(called, values)
            continue
        is_turned = name.endswith(("q_proj.weight", "k_proj.weight"))  # llama.cpp turns pairs that lie side by side
        if is_turned:
            values = values.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(values.shape)
        blocks = gguf.quants.quantize(values, kind)
        writer.add_tensor(called, blocks, raw_dtype=kind)
        values = gguf.quants.dequantize(blocks, kind)
        if is_turned:
            values = values.reshape(heads, width // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        with torch.no_grad():
            rounded.get_parameter(name).copy_(torch.from_numpy(values.copy()))
    finish(writer)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
