"""Hugging Face ResNets, basic and bottleneck: stage widths are the only widths its config can express."""

from __future__ import annotations

from typing import Any

from dnge_compress.graph.builder import GraphBuilder, prefix_of
from dnge_compress.graph.types import Kind, ModelGraph, Shapes

MODEL_TYPES = ("resnet",)
REDUCTION = 4  # a bottleneck's inner width is a quarter of its stage's


def build(config: Any, shapes: Shapes) -> ModelGraph:
    """The graph of a ResNet, with or without its classifier.

    A stage's channels form one space (the residual sums tie them); each block's inner channels form others. The stem
    is left alone unless it shares its channels with the first stage, and so is the last stage where no classifier
    reads it: it is the output.
    """
    g = GraphBuilder("resnet", shapes)
    base = prefix_of(shapes, "embedder.embedder.")
    bottleneck = config.layer_type == "bottleneck"
    pixels = g.space("pixels", config.num_channels, "fixed")
    stem_is_stage = f"{base}encoder.stages.0.layers.0.shortcut.convolution.weight" not in shapes
    heads = [h for h in ("classifier.1", "classifier") if f"{h}.weight" in shapes]
    output = None if heads else len(config.depths) - 1
    stem = g.space(
        "stage.0" if stem_is_stage else "stem",
        config.embedding_size,
        "channel" if stem_is_stage and output != 0 else "fixed",
    )
    if stem_is_stage:
        g.config_field("embedding_size", stem)
    _conv(g, f"{base}embedder.embedder", pixels, stem, config.hidden_act)

    src = stem
    for s, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        stage = f"{base}encoder.stages.{s}.layers"
        kind: Kind = "fixed" if s == output else "channel"
        dst = stem if s == 0 and stem_is_stage else g.space(f"stage.{s}", width, kind, s)
        # An identity shortcut appears as soon as stem and first stage agree in width: not the network that was cut.
        forbids = (
            config.embedding_size if s == 0 and not stem_is_stage and not config.downsample_in_first_stage else None
        )
        fixed = "without a classifier the last stage is the model's output" if s == output else ""
        g.config_field("hidden_sizes", dst, index=s, forbids=forbids, fixed=fixed)
        g.layers(f"layers.{s}", [f"{stage}.{b}" for b in range(depth)], protected=(0,))
        g.config_field("depths", f"layers.{s}", index=s)
        for b in range(depth):
            block = f"{stage}.{b}"
            if f"{block}.shortcut.convolution.weight" in shapes:
                _conv(g, f"{block}.shortcut", src, dst)
            inner = width // REDUCTION if bottleneck else width
            factor = REDUCTION if bottleneck else 1
            convs = 3 if bottleneck else 2
            here = src
            for c in range(convs):
                last = c == convs - 1
                there = dst if last else g.space(f"inner.{s}.{b}.{c}", inner, "channel", s)
                if not last:
                    g.config_field("hidden_sizes", there, index=s, factor=factor, fixed=fixed)
                _conv(g, f"{block}.layer.{c}", here, there, "" if last else config.hidden_act)
                here = there
            src = dst
    for head in heads:
        g.linear(head, src, g.space("labels", shapes[f"{head}.weight"][0], "fixed"))
    return g.finish()


def _conv(g: GraphBuilder, module: str, src: str, dst: str, activation: str = "") -> None:
    g.linear(f"{module}.convolution", src, dst, "conv", activation=activation)
    g.norm(f"{module}.normalization", dst, "batchnorm", is_behind=True)
