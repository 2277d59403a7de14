"""GPT-2: fused query/key/value and transposed `Conv1D` weights, stored [in, out]."""

from __future__ import annotations

from typing import Any

from dnge_compress.graph.builder import GraphBuilder, OtherArchitecture, prefix_of
from dnge_compress.graph.types import ModelGraph, Shapes

MODEL_TYPES = ("gpt2",)


def build(config: Any, shapes: Shapes) -> ModelGraph:
    """The graph of a GPT-2 model, with or without its language-model head."""
    if config.add_cross_attention:
        raise OtherArchitecture("GPT-2 with cross-attention is not supported; use the decoder-only model")
    g = GraphBuilder("gpt2", shapes)
    base = prefix_of(shapes, "h.0.")
    hidden, n_heads, n_layers = config.n_embd, config.n_head, config.n_layer
    inner = config.n_inner or 4 * hidden

    vocabulary = g.space("vocabulary", config.vocab_size, "fixed")
    residual = g.space("residual", hidden, "residual")
    # With scale_attn_by_inverse_layer_idx a block's arithmetic depends on its number: dropping one changes the rest.
    protected = range(n_layers) if config.scale_attn_by_inverse_layer_idx else ()
    g.layers("layers", [f"{base}h.{i}" for i in range(n_layers)], protected)
    g.embed(f"{base}wte", vocabulary, residual)
    g.embed(f"{base}wpe", None, residual)
    ffn, heads = [], []
    for i in range(n_layers):
        block = f"{base}h.{i}"
        g.norm(f"{block}.ln_1", residual)
        fused = f"{block}.attn.c_attn"
        space, width = g.attention((fused,) * 3, residual, i, (n_heads, n_heads), hidden // n_heads)
        heads.append(space)
        g.attribute(space, f"{block}.attn", "num_heads")
        g.attribute(space, f"{block}.attn", "split_size", hidden // n_heads)
        g.linear(f"{block}.attn.c_proj", space, residual, "linear_t", width_in=width)
        g.norm(f"{block}.ln_2", residual)
        neurons = g.space(f"ffn.{i}", inner, "neuron", i)
        ffn.append(neurons)
        g.linear(f"{block}.mlp.c_fc", residual, neurons, "linear_t", activation=config.activation_function)
        g.linear(f"{block}.mlp.c_proj", neurons, residual, "linear_t")
    g.norm(f"{base}ln_f", residual)
    if "lm_head.weight" in shapes:
        g.linear("lm_head", residual, vocabulary)

    g.config_field("n_inner", *ffn)
    g.config_field(
        "n_head", *heads, fixed="GPT-2's head size is hidden size / heads, so heads go only with the hidden size"
    )
    g.config_field("n_layer", "layers")
    return g.finish()
