"""Tiny models with unequal sizes, so that axes can't be confused. `MODELS` names a factory and example inputs each;
`FAMILIES` are those that a family file reads, `PLAIN` those that need tracing.

Values are far from their start: larger weights, and noise on every gain, bias and running statistic, so that no row
is trivially one or zero and outputs are far from constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
)

from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import ModelGraph

VOCABULARY = 61
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
}
STAGES = {"num_channels": 3, "num_labels": 7}


@dataclass(frozen=True)
class Tiny:
    """How to make a tiny model and what to call it with."""

    factory: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor] | Tensor]
    family: str = ""


class ResidualCNN(nn.Module):
    """Two blocks around one width, a depthwise conv in the second, and a functional activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv1, self.bn1, self.relu = nn.Conv2d(10, 14, 3, padding=1), nn.BatchNorm2d(14), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(14, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.expand, self.depthwise = nn.Conv2d(10, 18, 1), nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.shrink, self.head = nn.Conv2d(18, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 5]`."""
        x = nnf.relu(self.stem_bn(self.stem(x)))
        x = x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        x = x + self.shrink(nnf.gelu(self.depthwise(self.expand(x))))
        return self.head(x.mean((2, 3)))


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(9, 13), nn.ReLU(), nn.Linear(13, 11), nn.GELU(), nn.Linear(11, 4))


def cnn() -> nn.Module:
    """Convs with batch norm, pooled before the head."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )


def cnn_plain() -> nn.Module:
    """No norms; the head reads 16 positions of every channel."""
    return nn.Sequential(
        *(nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(7, 9, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(9 * 4 * 4, 15), nn.ReLU(), nn.Linear(15, 5)),
    )


def tokens() -> dict[str, Tensor]:
    """A batch of random tokens `[2, 11]`."""
    return {"input_ids": torch.randint(4, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))}


def pixels(size: int = 16) -> Tensor:
    """A batch of noise images `[2, 3, size, size]`."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def images() -> dict[str, Tensor]:
    """`pixels` as transformers want them."""
    return {"pixel_values": pixels(32)}


MODELS: dict[str, Tiny] = {
    "llama": Tiny(lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)), tokens, "llama"),
    "llama_mqa": Tiny(lambda: LlamaForCausalLM(LlamaConfig(**{**DECODER, "num_key_value_heads": 1})), tokens, "llama"),
    "llama_bias": Tiny(
        lambda: LlamaForCausalLM(LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True)), tokens, "llama"
    ),
    "mistral": Tiny(lambda: MistralForCausalLM(MistralConfig(**DECODER)), tokens, "llama"),
    "qwen2": Tiny(lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)), tokens, "llama"),
    "qwen3": Tiny(lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=10)), tokens, "llama"),
    "gpt2": Tiny(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=24,
                n_inner=28,
                n_layer=2,
                n_head=3,
                n_positions=32,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        tokens,
        "gpt2",
    ),
    "bert": Tiny(lambda: BertModel(BertConfig(**ENCODER)), tokens, "bert"),
    "bert_mlm": Tiny(lambda: BertForMaskedLM(BertConfig(**ENCODER)), tokens, "bert"),
    "roberta": Tiny(lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER, pad_token_id=1)), tokens, "bert"),
    "vit": Tiny(
        lambda: ViTForImageClassification(
            ViTConfig(
                hidden_size=24,
                intermediate_size=28,
                num_hidden_layers=2,
                num_attention_heads=3,
                image_size=32,
                patch_size=8,
                num_labels=7,
            )
        ),
        images,
        "vit",
    ),
    "resnet_basic": Tiny(
        lambda: ResNetForImageClassification(
            ResNetConfig(**STAGES, embedding_size=10, hidden_sizes=[10, 14], depths=[2, 2], layer_type="basic")
        ),
        images,
        "resnet",
    ),
    "resnet_bottleneck": Tiny(
        lambda: ResNetForImageClassification(
            ResNetConfig(**STAGES, embedding_size=10, hidden_sizes=[16, 24], depths=[2, 1], layer_type="bottleneck")
        ),
        images,
        "resnet",
    ),
    "resnet_bare": Tiny(
        lambda: ResNetModel(
            ResNetConfig(**STAGES, embedding_size=10, hidden_sizes=[10, 14], depths=[1, 2], layer_type="basic")
        ),
        images,
        "resnet",
    ),
    "mlp": Tiny(mlp, lambda: torch.randn(6, 9, generator=torch.Generator().manual_seed(1))),
    "cnn": Tiny(cnn, pixels),
    "cnn_plain": Tiny(cnn_plain, pixels),
    "cnn_residual": Tiny(ResidualCNN, pixels),
}
FAMILIES = tuple(name for name, tiny in MODELS.items() if tiny.family)
PLAIN = tuple(name for name, tiny in MODELS.items() if not tiny.family)


def make(name: str) -> nn.Module:
    """The tiny model `name`, in eval mode, always the same."""
    torch.manual_seed(0)
    return roughened(MODELS[name].factory()).eval()


def example_inputs(name: str) -> dict[str, Tensor] | Tensor:
    """What to call it with."""
    return MODELS[name].inputs()


@torch.no_grad()
def roughened(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights at He's scale, noisy gains and biases, and used running statistics; in place."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() < 2:
            p.add_(0.3 * noise)
        else:
            p.copy_(noise * (2 / p[0].numel()) ** 0.5)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.add_(0.3 * torch.randn(b.shape, generator=generator))
        elif name.endswith("running_var"):
            b.mul_(0.5 + torch.rand(b.shape, generator=generator))
    return model


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """The main output: logits where there are some, else the last hidden state, else what the model returns."""
    with torch.no_grad():
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    if isinstance(out, Tensor):
        return out
    return out.logits if "logits" in out else out.last_hidden_state


def graph_of(name: str, model: nn.Module) -> ModelGraph:
    """The graph of a tiny model: from its family, or traced."""
    return build_graph(model, None if MODELS[name].family else example_inputs(name))
