"""An encoder-decoder, a mixture of experts and a CLIP-like model: feed-forward neurons removed from every layer.

    python benchmarks/modalities.py [--only t5,moe,clip] [--seeds 3]   # half an hour on two cores

The models are tiny and trained here for some minutes on the shared data (books as bytes; CIFAR-10 with the names of its
classes), and kept in out/modalities. Measure: KL divergence of the answers from the original's on held-out real inputs,
in nats per answer; lower is better. Real data are 256 inputs. Writes results/modalities.md.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from harness import DATA, Source, Table
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    logging,
)

KEPT = Path(__file__).parents[1] / "out" / "modalities"
RATIOS = (0.3, 0.5)
SOURCE, TARGET = 64, 32  # bytes that the encoder reads, and that the decoder goes on with
BYTES, START, END = 256, 256, 257
BATCH, REAL, JUDGED = 32, 256, 512
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARMS = (("random", "lstsq"), ("encoder", "lstsq"))
DATA_ARMS = (("flap", "lstsq"), ("encoder", "lstsq"))

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """A model to train, how many steps, and batches of a split ("train" or "valid") from a seed."""

    make: Callable[[], nn.Module]
    steps: int
    batches: Callable[[str, int], Iterator[Batch]]
    loss: Callable[[nn.Module, Batch], Tensor]


def t5() -> nn.Module:
    """An encoder-decoder over bytes."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=260, d_model=96, d_kv=24, d_ff=320, num_layers=3, num_decoder_layers=3, num_heads=4,
            dropout_rate=0.0, feed_forward_proj="gated-gelu", decoder_start_token_id=START, pad_token_id=258,
            eos_token_id=END,
        )
    )  # fmt: skip


def moe() -> nn.Module:
    """A Llama-like decoder over bytes with eight experts in every layer, two for each token."""
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=260, hidden_size=96, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, bos_token_id=START, eos_token_id=END,
            pad_token_id=258, max_position_embeddings=128,
        )
    )  # fmt: skip


def clip() -> nn.Module:
    """Two towers: images of CIFAR-10, and the names of classes as bytes."""
    text = {
        "vocab_size": 260, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "bos_token_id": START, "eos_token_id": END,
        "pad_token_id": 258,
    }  # fmt: skip
    vision = {
        "hidden_size": 96, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 4,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def books(split: str) -> Tensor:
    """A split's books, one after the other, as bytes."""
    rows = pq.read_table(DATA / f"books_{split}.parquet").column("text").to_pylist()
    return torch.tensor(list("\n".join(rows).encode()[: 20_000_000 if split == "train" else 2_000_000]))


def windows(text: Tensor, length: int, seed: int) -> Iterator[Tensor]:
    """Random windows `[BATCH, length]`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        first = torch.randint(len(text) - length, (BATCH,), generator=generator)
        yield text[first[:, None] + torch.arange(length)]


def continued(split: str, seed: int) -> Iterator[Batch]:
    """Sources, and how they go on."""
    for ids in windows(books(split), SOURCE + TARGET, seed):
        target = torch.cat([torch.full((BATCH, 1), START), ids[:, SOURCE:-1]], 1)
        source = ids[:, :SOURCE]
        yield {
            "input_ids": source,
            "attention_mask": torch.ones_like(source),
            "decoder_input_ids": target,
            "labels": ids[:, SOURCE:].contiguous(),
        }


def text(split: str, seed: int) -> Iterator[Batch]:
    """Windows of the books after the start token."""
    for ids in windows(books(split), SOURCE - 1, seed):
        whole = torch.cat([torch.full((BATCH, 1), START), ids], 1)
        yield {"input_ids": whole, "labels": whole}


def named_images(split: str, seed: int) -> Iterator[Batch]:
    """Images, with the names of all classes and which of them is right."""
    table = pq.read_table(DATA / "cifar10.parquet")
    rows = [i for i, s in enumerate(table.column("split").to_pylist()) if (s == "train") == (split == "train")]
    rows = rows[:20_000]
    jpegs, labels = table.column("jpeg").to_pylist(), table.column("label").to_pylist()
    pixels = torch.stack([_pixels(jpegs[i]) for i in rows])
    wanted = torch.tensor([labels[i] for i in rows])
    spelled = torch.tensor([[START, *name.encode(), END, *[258] * (14 - len(name))] for name in CLASSES])
    generator = torch.Generator().manual_seed(seed)
    while True:
        pick = torch.randint(len(rows), (2 * BATCH,), generator=generator)
        yield {"pixel_values": pixels[pick], "input_ids": spelled, "labels": wanted[pick]}


def _pixels(jpeg: bytes) -> Tensor:
    image = torch.frombuffer(bytearray(Image.open(io.BytesIO(jpeg)).convert("RGB").tobytes()), dtype=torch.uint8)
    return (image.view(32, 32, 3).permute(2, 0, 1).float() / 255 - 0.47) / 0.25


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that transformers computes from labels."""
    return model(**batch).loss


def naming_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the right name among all."""
    return nn.functional.cross_entropy(answers(model, batch), batch["labels"])


TASKS = {
    "t5": Task(t5, 1600, continued, own_loss),
    "moe": Task(moe, 1600, text, own_loss),
    "clip": Task(clip, 1000, named_images, naming_loss),
}


def answers(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of the model's answers `[…, choices]`."""
    output: Any = model(**{k: v for k, v in batch.items() if k != "labels"})
    return output["logits_per_image"] if "logits_per_image" in output else output["logits"]


def trained(name: str) -> nn.Module:
    """The model of a task, trained once and kept."""
    task, file = TASKS[name], KEPT / f"{name}.pt"
    torch.manual_seed(0)
    model = task.make()
    if not file.exists():
        optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, task.steps)
        started, recent = time.perf_counter(), 0.0
        for step, batch in zip(range(task.steps), task.batches("train", 1), strict=False):
            with torch.autocast("cpu", torch.bfloat16):
                loss = task.loss(model.train(), batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            recent = 0.98 * recent + 0.02 * loss.item() if step else loss.item()
            if step % 250 == 249:
                print(f"{name}: step {step + 1}, loss {recent:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file))
    return model.eval()


def first(batches: Iterator[Batch], rows: int) -> list[Batch]:
    """As many batches as hold so many inputs, without labels."""
    found, count = [], 0
    while count < rows:
        batch = {k: v for k, v in next(batches).items() if k != "labels"}
        found.append(batch)
        count += len(batch.get("pixel_values", batch["input_ids"]))
    return found


def main() -> None:
    """Train what is missing, prune by all arms, judge and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="t5,moe,clip")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    random.seed(0)
    result = Table("modalities", "Encoder-decoder, mixture of experts, CLIP", RATIOS)
    for name in options.only.split(","):
        measure(name, trained(name), result, options.seeds)
    result.notes = [
        "KL to the original on 512 held-out real inputs, nats per answer; mean ± standard deviation over seeds.",
        "“Real” rows were calibrated on 256 real training inputs, “synthetic” ones on what the package makes.",
    ]
    result.write(("model", "inputs", "scorer", "repair"))


def measure(name: str, model: nn.Module, result: Table, seeds: int) -> None:
    """All arms on one model."""
    task = TASKS[name]
    judged = first(task.batches("valid", 5), JUDGED)
    with torch.no_grad():
        reference = [answers(model, batch).log_softmax(-1) for batch in judged]

    def divergence(small: nn.Module) -> float:
        with torch.no_grad():
            found = [
                (r.exp() * (r - answers(small, b).log_softmax(-1))).sum(-1).mean()
                for b, r in zip(judged, reference, strict=True)
            ]
        return float(torch.stack(found).mean())

    def arms(source: Source, kind: str, pairs: tuple[tuple[str, str], ...], seed: int) -> None:
        for scorer, repair in pairs:
            result.measure(
                (name, kind, scorer, repair),
                lambda ratio, s=scorer, r=repair: source.prune(s, r, "prune/neurons", ratio),
                divergence,
                seed,
            )

    for seed in range(seeds):
        arms(Source(model, seed=seed, tokens=8192), "synthetic", (("magnitude", "lstsq"), *ARMS), seed)
        real = first(task.batches("train", 100 + seed), REAL)
        arms(Source(model, data=real, seed=seed), "real", DATA_ARMS, seed)


if __name__ == "__main__":
    sys.exit(main())
