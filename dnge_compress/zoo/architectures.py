"""Untrained networks from blueprints; the transformers ones are built from configs, without a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from dnge_compress.zoo.blueprint import IMAGE, Blueprint
from dnge_compress.zoo.corpora import VOCABULARY
from dnge_compress.zoo.networks import CNN, MLP

CLASSES = 10


def build(blueprint: Blueprint) -> nn.Module:
    """Make the network with initial weights from the blueprint's seed, in training mode.

    Example:
        >>> from dnge_compress.zoo.blueprint import blueprints
        >>> type(build(blueprints(1, seed=0)[0])).__name__
        'MLP'
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(blueprint.seed)
        return _BUILDERS[blueprint.family](blueprint).train()


def _mlp(b: Blueprint) -> nn.Module:
    channels, side = IMAGE[b.data]
    features = channels * side * side
    return MLP(features, b.widths, classes=CLASSES, activation=b.activation, dropout=b.dropout)


def _cnn(b: Blueprint) -> nn.Module:
    options: dict[str, Any] = {"activation": b.activation, "batch_norm": b.batch_norm, "layout": b.layout}
    return CNN(IMAGE[b.data], b.widths, classes=CLASSES, **options)


def _resnet(b: Blueprint) -> nn.Module:
    sizes = {"embedding_size": b.widths[0], "hidden_sizes": list(b.widths[1:]), "depths": list(b.blocks)}
    config: dict[str, Any] = sizes | {"num_channels": IMAGE[b.data][0], "num_labels": CLASSES}
    config |= {"layer_type": b.layout[0], "hidden_act": b.activation, "downsample_in_first_stage": False}
    return hf.ResNetForImageClassification(hf.ResNetConfig(**config))


def _sizes(b: Blueprint) -> dict[str, Any]:
    """What the configs of all transformers share, GPT-2's by other names."""
    sizes = {"hidden_size": b.widths[0], "num_hidden_layers": b.depth, "num_attention_heads": b.heads}
    return sizes | {"initializer_range": b.init}


def _encoder(b: Blueprint) -> dict[str, Any]:
    dropout = {"hidden_dropout_prob": b.dropout, "attention_probs_dropout_prob": 0.0}
    return _sizes(b) | dropout | {"intermediate_size": b.ffn, "hidden_act": b.activation}


def _decoder(b: Blueprint) -> dict[str, Any]:
    tokens = {"vocab_size": VOCABULARY[b.data], "bos_token_id": None, "eos_token_id": None, "use_cache": False}
    return _sizes(b) | tokens | {"max_position_embeddings": b.length, "tie_word_embeddings": b.tied}


def _vit(b: Blueprint) -> nn.Module:
    channels, side = IMAGE[b.data]
    image: dict[str, Any] = {"num_channels": channels, "image_size": side, "patch_size": b.patch, "num_labels": CLASSES}
    return hf.ViTForImageClassification(hf.ViTConfig(**_encoder(b), **image))


def _gpt2(b: Blueprint) -> nn.Module:
    dropout: dict[str, Any] = {"resid_pdrop": b.dropout, "embd_pdrop": b.dropout, "attn_pdrop": 0.0}
    mlp: dict[str, Any] = {"n_inner": b.ffn, "activation_function": b.activation}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**_decoder(b), **dropout, **mlp))


def _llama(b: Blueprint) -> nn.Module:
    mlp: dict[str, Any] = {"intermediate_size": b.ffn, "hidden_act": b.activation}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_decoder(b), **mlp, num_key_value_heads=b.kv_heads))


def _bert(b: Blueprint) -> nn.Module:
    tokens: dict[str, Any] = {"vocab_size": b.mask_id + 1, "max_position_embeddings": b.length, "pad_token_id": None}
    model = hf.BertForMaskedLM(hf.BertConfig(**_encoder(b), **tokens, tie_word_embeddings=b.tied))
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight.copy_(b.init * _sinusoids(b.length, b.widths[0]))
    return model


def _sinusoids(length: int, hidden: int) -> Tensor:
    """Sines and cosines of positions at `hidden / 2` wavelengths: [length, hidden]."""
    frequency = 1000 ** -(torch.arange(hidden // 2) / (hidden // 2))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


_BUILDERS: dict[str, Callable[[Blueprint], nn.Module]] = dict(
    mlp=_mlp, cnn=_cnn, resnet=_resnet, vit=_vit, gpt2=_gpt2, llama=_llama, bert=_bert
)
