"""Vision transformers (ViT): pre-norm encoder over image patches."""

from __future__ import annotations

from typing import Any

from dnge_compress.graph.builder import GraphBuilder, prefix_of
from dnge_compress.graph.types import ModelGraph, Shapes

MODEL_TYPES = ("vit",)


def build(config: Any, shapes: Shapes) -> ModelGraph:
    """The graph of a ViT, with or without its classifier."""
    g = GraphBuilder("vit", shapes)
    base = prefix_of(shapes, "layers.0.")
    hidden, n_heads, n_layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or hidden // n_heads

    pixels = g.space("pixels", config.num_channels, "fixed")
    residual = g.space("residual", hidden, "residual")
    g.layers("layers", [f"{base}layers.{i}" for i in range(n_layers)])
    g.linear(f"{base}embeddings.patch_embeddings.projection", pixels, residual, "conv")
    ffn, heads = [], []
    for i in range(n_layers):
        block = f"{base}layers.{i}"
        g.norm(f"{block}.layernorm_before", residual)
        query, key, value = (f"{block}.attention.{n}_proj" for n in "qkv")
        space, width = g.attention((query, key, value), residual, i, (n_heads, n_heads), head_dim)
        heads.append(space)
        g.attribute(space, f"{block}.attention", "num_attention_heads")
        g.linear(f"{block}.attention.o_proj", space, residual, width_in=width)
        g.norm(f"{block}.layernorm_after", residual)
        neurons = g.space(f"ffn.{i}", config.intermediate_size, "neuron", i)
        ffn.append(neurons)
        g.linear(f"{block}.mlp.fc1", residual, neurons, activation=config.hidden_act)
        g.linear(f"{block}.mlp.fc2", neurons, residual)
    g.norm(f"{base}layernorm", residual)
    if "classifier.weight" in shapes:
        g.linear("classifier", residual, g.space("labels", shapes["classifier.weight"][0], "fixed"))

    g.config_field("intermediate_size", *ffn)
    g.config_field("num_attention_heads", *heads, also=(("head_dim", head_dim),))
    g.config_field("num_hidden_layers", "layers")
    return g.finish()
