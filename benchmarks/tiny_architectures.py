"""233 architectures, as many as people bring who prune models: tiny configs with unequal sizes, one a line of
`tiny_architectures.jsonl`, and random weights whose outputs are far from constant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

CONFIGS = Path(__file__).with_suffix(".jsonl")
ORDINARY = (4, 88)  # token ids that no config calls special
PICTURE = 90  # the token that stands for pictures
# Parameters of recurrences, positions and the like, whose values mean something.
MEANINGFUL = (
    *("A_log", "dt_bias", "dt_proj", ".D", "time_decay", "time_first", "recurrent_param", "inv_freq", "rel_pos"),
    *("lambda", "slope"),
)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """One architecture: its model type, the class that builds it, its config and what it is called with."""

    name: str
    group: str
    model_type: str
    builder: str
    config: dict[str, Any]
    inputs: str
    generates: bool
    task: str | None

    def build(self) -> PreTrainedModel:
        """The model, with seeded random weights."""
        config = transformers.AutoConfig.for_model(self.model_type, **self.config)
        cls = getattr(transformers, self.builder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = cls.from_config(config) if self.builder.startswith("Auto") else cls(config)
            return roughened(model).eval()


def _read() -> dict[str, Tiny]:
    rows = [json.loads(line) for line in CONFIGS.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: Tiny(builder=row.pop("class"), **row) for row in rows}


ARCHITECTURES = _read()


@torch.no_grad()
def roughened(model: Any) -> Any:
    """Weights at 1/sqrt(fan-in), noise on gains and biases, used running statistics."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if any(part in name for part in MEANINGFUL) or not p.is_floating_point():
            continue
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() >= 3 or (p.dim() == 2 and min(p.shape) > 1):
            fan_in = p.shape[-1] if p.dim() == 3 and "expert" in name else max(1, p[0].numel())
            p.copy_(noise * (1.5 / fan_in) ** 0.5)
        else:
            p.add_(0.1 * noise)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0  # torch never trains it, and some models zero it when they are read
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.add_(0.2 * torch.randn(b.shape, generator=generator))
        elif name.endswith("running_var"):
            b.mul_(0.6 + torch.rand(b.shape, generator=generator))
    return model


def inputs_of(kind: str) -> dict[str, Tensor]:
    """Seeded inputs of a kind that an architecture names."""
    generator = torch.Generator().manual_seed(1)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(*ORDINARY, shape, generator=generator)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def ending(ids: Tensor) -> Tensor:
        ids[:, -1] = 2
        return ids

    def shown(count: int) -> dict[str, Tensor]:
        ids = torch.cat([text[:, :2], torch.full((2, count), PICTURE), text[:, 2:]], 1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def patched(shown: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds = (shown["input_ids"] == PICTURE).int()
        grid = torch.tensor([[1, 4, 6], [1, 4, 6]])
        return {**shown, "mm_token_type_ids": kinds, "pixel_values": noise(48, 384), "image_grid_thw": grid}

    text = tokens(2, 12)
    makers: dict[str, Any] = {
        "tokens": lambda: {"input_ids": text, "attention_mask": torch.ones_like(text)},
        "choice": lambda: {"input_ids": tokens(2, 3, 12), "attention_mask": torch.ones(2, 3, 12, dtype=torch.long)},
        "seq2seq": lambda: makers["tokens"]() | {"decoder_input_ids": tokens(2, 7)},
        "bart_cls": lambda: {"input_ids": ending(text.clone()), "attention_mask": torch.ones_like(text)},
        "whisper": lambda: {"input_features": noise(2, 16, 40), "decoder_input_ids": tokens(2, 7)},
        "mel": lambda: {"input_features": noise(2, 16, 40)},
        "mel_bt": lambda: {"input_features": noise(2, 40, 16)},
        "s2t": lambda: {"input_features": noise(2, 40, 16), "decoder_input_ids": tokens(2, 7)},
        "ast": lambda: {"input_values": noise(2, 32, 16)},
        "wave": lambda: {"input_values": noise(2, 400)},
        "pixels": lambda: {"pixel_values": noise(2, 3, 32, 32)},
        "pixels64": lambda: {"pixel_values": noise(2, 3, 64, 64)},
        "video": lambda: {"pixel_values": noise(2, 4, 3, 32, 32)},
        "clip": lambda: {"input_ids": ending(tokens(2, 12)), "pixel_values": noise(2, 3, 32, 32)},
        "blip": lambda: {"pixel_values": noise(2, 3, 32, 32), "input_ids": text},
        "llava": lambda: shown(16) | {"pixel_values": noise(2, 3, 32, 32)},
        "gemma3": lambda: shown(4) | {"pixel_values": noise(2, 3, 32, 32)},
        "smolvlm": lambda: shown(4) | {"pixel_values": noise(2, 1, 3, 32, 32)},
        "qwen_vl": lambda: patched(shown(6)),
        "ved": lambda: {"pixel_values": noise(2, 3, 32, 32), "decoder_input_ids": tokens(2, 7)},
    }
    made: dict[str, Tensor] = makers[kind]()
    return made


def main_output(output: Any) -> Tensor:
    """The logits, or the first tensor that is not a number."""
    if output.get("logits") is not None:
        found: Tensor = output["logits"]
        return found
    return next(v for v in output.values() if isinstance(v, Tensor) and v.dim() > 1)
