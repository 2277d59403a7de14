"""Llama-like decoders: pre-norm blocks, grouped-query attention, gated feed-forward layers, rotary positions."""

from __future__ import annotations

from typing import Any

from dnge_compress.graph.builder import GraphBuilder, prefix_of
from dnge_compress.graph.types import ModelGraph, Shapes

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def build(config: Any, shapes: Shapes) -> ModelGraph:
    """The graph of a Llama, Mistral, Qwen2 or Qwen3 model, with or without a head on top."""
    g = GraphBuilder("llama", shapes)
    base = prefix_of(shapes, "layers.0.")
    n_layers, hidden = config.num_hidden_layers, config.hidden_size
    n_q, n_kv = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or hidden // n_q

    vocabulary = g.space("vocabulary", config.vocab_size, "fixed")
    residual = g.space("residual", hidden, "residual")
    g.layers("layers", [f"{base}layers.{i}" for i in range(n_layers)])
    g.embed(f"{base}embed_tokens", vocabulary, residual)
    ffn, heads = [], []
    for i in range(n_layers):
        block = f"{base}layers.{i}"
        g.norm(f"{block}.input_layernorm", residual)
        query, key, value = (f"{block}.self_attn.{n}_proj" for n in "qkv")
        space, width = g.attention((query, key, value), residual, i, (n_q, n_kv), head_dim)
        heads.append(space)
        if n_kv == 1 and n_q > 1:  # units are query heads, all reading one key and value
            g.attribute(space, f"{block}.self_attn", "num_key_value_groups")
        g.linear(f"{block}.self_attn.o_proj", space, residual, width_in=width)
        g.norm(f"{block}.post_attention_layernorm", residual)
        neurons = g.space(f"ffn.{i}", config.intermediate_size, "neuron", i)
        ffn.append(neurons)
        g.gated(f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj", residual, neurons, config.hidden_act)
        g.linear(f"{block}.mlp.down_proj", neurons, residual)
    g.norm(f"{base}norm", residual)
    if "lm_head.weight" in shapes:
        g.linear("lm_head", residual, vocabulary)
    elif "score.weight" in shapes:
        g.linear("score", residual, g.space("labels", shapes["score.weight"][0], "fixed"))

    g.config_field("intermediate_size", *ffn)
    # LlamaConfig refuses head counts that don't divide the hidden size, even with an explicit head_dim.
    divides = hidden if config.model_type == "llama" else None
    shared_kv = n_kv == 1 and n_q > 1
    also = (("head_dim", head_dim),)
    g.config_field("num_attention_heads", *heads, factor=1 if shared_kv else n_q // n_kv, divides=divides, also=also)
    if not shared_kv:
        g.config_field("num_key_value_heads", *heads)
    g.config_field(
        "num_hidden_layers", "layers", lists=("layer_types",) if getattr(config, "layer_types", None) else ()
    )
    return g.finish()
