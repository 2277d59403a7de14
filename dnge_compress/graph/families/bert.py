"""BERT and RoBERTa: post-norm encoders with absolute positions."""

from __future__ import annotations

from typing import Any

from dnge_compress.graph.builder import GraphBuilder, OtherArchitecture, prefix_of
from dnge_compress.graph.types import ModelGraph, Shapes

MODEL_TYPES = ("bert", "roberta")


def build(config: Any, shapes: Shapes) -> ModelGraph:
    """The graph of a BERT or RoBERTa encoder, with any head on top (heads are read, never cut)."""
    if config.is_decoder or config.add_cross_attention:
        raise OtherArchitecture(f"'{config.model_type}' as a decoder is not supported; use the encoder")
    g = GraphBuilder("bert", shapes)
    base = prefix_of(shapes, "encoder.layer.0.")
    hidden, n_heads, n_layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    head_dim = hidden // n_heads

    vocabulary = g.space("vocabulary", config.vocab_size, "fixed")
    residual = g.space("residual", hidden, "residual")
    g.layers("layers", [f"{base}encoder.layer.{i}" for i in range(n_layers)])
    g.embed(f"{base}embeddings.word_embeddings", vocabulary, residual)
    g.embed(f"{base}embeddings.position_embeddings", None, residual)
    g.embed(f"{base}embeddings.token_type_embeddings", None, residual)
    g.norm(f"{base}embeddings.LayerNorm", residual)
    ffn, heads = [], []
    for i in range(n_layers):
        block = f"{base}encoder.layer.{i}"
        self_attention = f"{block}.attention.self"
        query, key, value = (f"{self_attention}.{n}" for n in ("query", "key", "value"))
        space, width = g.attention((query, key, value), residual, i, (n_heads, n_heads), head_dim)
        heads.append(space)
        g.attribute(space, self_attention, "num_attention_heads")
        g.attribute(space, self_attention, "all_head_size", head_dim)
        g.linear(f"{block}.attention.output.dense", space, residual, width_in=width)
        g.norm(f"{block}.attention.output.LayerNorm", residual)
        neurons = g.space(f"ffn.{i}", config.intermediate_size, "neuron", i)
        ffn.append(neurons)
        g.linear(f"{block}.intermediate.dense", residual, neurons, activation=config.hidden_act)
        g.linear(f"{block}.output.dense", neurons, residual)
        g.norm(f"{block}.output.LayerNorm", residual)
    for decoder in ("cls.predictions.decoder", "lm_head.decoder"):
        if f"{decoder}.weight" in shapes:
            g.linear(decoder, residual, vocabulary)

    g.config_field("intermediate_size", *ffn)
    g.config_field(
        "num_attention_heads",
        *heads,
        fixed="BERT's head size is hidden size / heads, so heads go only with the hidden size",
    )
    g.config_field("num_hidden_layers", "layers")
    return g.finish()
