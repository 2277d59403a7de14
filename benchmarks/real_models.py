"""Train two vision models that are larger than the zoo's and not in it: a ResNet and a ViT for CIFAR-10 (JPEG copy).

    python benchmarks/real_models.py --out runs/real --only resnet --minutes 25
    python benchmarks/real_models.py --out runs/real --only vit --minutes 25

Each takes `--minutes` of one core, goes on after its last whole epoch when started again, and ends as a folder that
`from_pretrained` loads, with a quality.json beside the weights. Nothing is chosen by the test split: it is looked at
once, at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, ViTConfig
from transformers import ViTForImageClassification as ViT

from dnge_compress.core.precision import fast_products
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import Images, images
from dnge_compress.zoo.training import float32_attention

CLASSES = 10
SIDE = 32  # pixels


def main() -> None:
    """Train the models asked for and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--only", choices=tuple(RECIPES), help="one of the two (default: both)")
    parser.add_argument("--minutes", type=float, default=25.0, help="training time of one core for each model")
    parser.add_argument("--data", help="folder with cifar10.parquet (default: DNGE_DATA)")
    parser.add_argument("--cache", help="folder with the decoded images (default: zoo/cache)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data_root = DataRoot.find(options.data, options.cache)
    for name in [options.only] if options.only else RECIPES:
        folder, recipe = options.out / f"{name}-cifar10", RECIPES[name]
        if not folder.is_dir():
            learn(folder, recipe, 60 * options.minutes, data_root)
        quality = json.loads((folder / "quality.json").read_text())
        missing = recipe.aim - quality["test_accuracy"]
        verdict = f"misses the aim of {recipe.aim:.0%} by {missing:.2%}" if missing > 0 else "reaches the aim"
        print(f"{folder}: test accuracy {quality['test_accuracy']:.2%}, {verdict}")


def inputs_of(images: Tensor, model: nn.Module) -> Tensor:
    """What `model` reads for images of `Images.batch`: float32 [B, 3, 32, 32] as they are, but for a ResNet doubled.

    The stem of a Hugging Face ResNet quarters the side; doubled [B, 3, 64, 64], its first stage sees 16 x 16.
    """
    if model.config.model_type != "resnet":
        return images
    return nn.functional.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; its learning rates rise to `lr` (and `lr_rest`) and fall linearly to zero."""

    family: str
    config: dict[str, Any]
    aim: float  # test accuracy, 0..1
    optimiser: str
    lr: float
    weight_decay: float
    lr_rest: float = 0.0  # of what Muon cannot take: all but the matrices of the layers
    batch_size: int = 128
    rise: float = 0.2  # share of the time
    smoothing: float = 0.1
    shift: int = 4  # pixels, either way; edges are mirrored
    window: int = 0  # side in patches of the part of the image that a ViT sees at first; 0 is all
    window_share: float = 0.0  # of the time
    seed: int = 0


RECIPES = {
    "resnet": Recipe(
        family="resnet",
        config={"embedding_size": 48, "hidden_sizes": [48, 96, 192], "depths": [2, 2, 2], "layer_type": "basic"},
        aim=0.85,
        optimiser="sgd",
        lr=0.15,
        weight_decay=5e-4,
    ),
    "vit": Recipe(
        family="vit",
        config={
            "image_size": SIDE,
            "patch_size": 4,
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.05,
        },
        aim=0.75,
        optimiser="muon",
        lr=2e-3,
        lr_rest=2e-3,
        weight_decay=0.05,
        rise=0.1,
        smoothing=0.05,
        shift=3,
        window=6,
        window_share=0.7,
    ),
}


def learn(folder: Path, recipe: Recipe, budget: float, data_root: DataRoot) -> None:
    """Train for `budget` seconds of this process's own time, measure on the test split and write `folder`."""
    model = build(recipe)
    run = Run(model, recipe, budget, folder.with_suffix(".checkpoint.pt"))
    run.resume()
    data = images("cifar10", "train", data_root=data_root)
    with float32_attention(model):
        while run.seconds < budget:
            run.epoch(data)
            run.save()
    model.to(memory_format=torch.contiguous_format).eval()
    quality = {
        "test_accuracy": accuracy(model, images("cifar10", "held-out", data_root=data_root)),
        "data": "CIFAR-10 (JPEG copy), 50,000 train and 10,000 test images, normalised as Images.batch does",
        "seconds": run.seconds,
        "images_seen": run.seen,
        "epochs": run.seen / len(data.labels),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": asdict(recipe),
    }
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    (unfinished / "quality.json").write_text(json.dumps(quality, indent=1))
    unfinished.rename(folder)
    run.path.unlink()


class Run:
    """A training that is under way: model, optimisers, time used (seconds of the process, all its threads)."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, budget: float, path: Path) -> None:
        self.model, self.recipe, self.budget, self.path = model, recipe, budget, path
        self.optimisers = optimisers(model, recipe)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.seconds, self.seen = 0.0, 0

    def epoch(self, data: Images) -> None:
        """One pass over the train images, or as much of it as the time allows."""
        recipe, model, total, count = self.recipe, self.model.train(), 0.0, 0
        started, seen = self.seconds, self.seen
        before = started - time.process_time()
        order = torch.randperm(len(data.labels), generator=self.generator)
        for index in order.split(recipe.batch_size)[: len(order) // recipe.batch_size]:
            if self.seconds >= self.budget:
                break
            progress = self.seconds / self.budget
            window = recipe.window if progress < recipe.window_share else 0
            x = inputs_of(augmented(data.batch(index), recipe.shift, self.generator), model)
            with fast_products(training=True), part_seen(model, window, self.generator):
                predicted = model(pixel_values=x).logits
            loss = nn.functional.cross_entropy(predicted.float(), data.labels[index], label_smoothing=recipe.smoothing)
            loss.backward()
            if recipe.optimiser == "muon":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * lr_share(progress, recipe.rise)
                optimiser.step()
                optimiser.zero_grad()
            total, count, self.seen = total + loss.item(), count + 1, self.seen + len(index)
            self.seconds = before + time.process_time()
        rate = (self.seen - seen) / (self.seconds - started)
        print(
            f"{self.seconds:6.0f} s  {self.seen:7d} images  {rate:4.0f} a second  loss {total / count:.4f}",
            file=sys.stderr,
            flush=True,
        )

    def save(self) -> None:
        """Write the checkpoint: whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "of": json.dumps([asdict(self.recipe), self.budget]),
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
            "seconds": self.seconds,
            "seen": self.seen,
        }
        unfinished = self.path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.path)

    def resume(self) -> None:
        """Go on where the checkpoint is, if there is one."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, weights_only=True)
        if state["of"] != json.dumps([asdict(self.recipe), self.budget]):
            raise SystemExit(f"{self.path} is of another recipe or --minutes; delete it to start anew")
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.seconds, self.seen = state["seconds"], state["seen"]


def build(recipe: Recipe) -> PreTrainedModel:
    """The model with initial weights from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    if recipe.family == "resnet":
        model = ResNetForImageClassification(ResNetConfig(**recipe.config, num_labels=CLASSES))
    else:
        model = ViT(ViTConfig(**recipe.config, num_labels=CLASSES))
        look_around(model)
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def look_around(model: ViT, *, sharpness: float = 1.2) -> None:
    """Let every head begin by looking at one of the patches next to its own, as a convolution would.

    Of a few epochs an untrained ViT spends most on finding neighbours. Positions start as sines and cosines in the
    first `head_dim` features, where a step to a neighbour is a rotation; queries are turned by it, keys are not.
    After "Structured initialization for attention in vision transformers" (Zheng et al., 2024).
    """
    config, vit = model.config, model.vit
    n_heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    side = config.image_size // config.patch_size
    frequency = torch.linspace(0.2, 2.0, width // 4)
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()  # (row, column) [P, 2]
    angle = (place[..., None] * frequency).flatten(1)  # [P, width / 2]
    vit.embeddings.position_embeddings[0, :, :width] = 0
    vit.embeddings.position_embeddings[0, 1:, :width] = torch.cat([angle.cos(), angle.sin()], dim=1)
    vit.embeddings.cls_token[..., :width] = 0
    vit.embeddings.patch_embeddings.projection.weight[:width] = 0
    around = torch.tensor([(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]).float()
    for layer in vit.layers:
        steps = around[torch.randperm(len(around))[:n_heads]]
        for head, step in enumerate(steps):
            turn = (step[:, None] * frequency).flatten()
            cos, sin = turn.cos().diag(), turn.sin().diag()
            rotation = torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])
            rows = slice(head * width, (head + 1) * width)
            layer.attention.q_proj.weight[rows, :width] += sharpness * rotation
            layer.attention.k_proj.weight[rows, :width] += sharpness * torch.eye(width)


def optimisers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """SGD with momentum, or Muon for the matrices of the layers and AdamW for the rest; vectors don't decay."""
    named = list(model.named_parameters())
    vectors = [p for _, p in named if p.ndim <= 1]
    if recipe.optimiser == "sgd":
        groups = [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        chosen = [torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)]
    else:
        hidden = [p for n, p in named if p.ndim == 2 and ".layers." in n]
        others = [p for n, p in named if p.ndim > 1 and ".layers." not in n]
        groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        chosen = [
            torch.optim.Muon(hidden, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, lr=recipe.lr_rest, betas=(0.9, 0.98), fused=True),
        ]
    for optimiser in chosen:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return chosen


def augmented(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Images [B, C, 32, 32] moved by up to `shift` pixels, half of them mirrored; in channels_last."""
    moves = torch.randint(-shift, shift + 1, (2, len(x), 1), generator=generator)
    rows, columns = SIDE - 1 - (SIDE - 1 - (torch.arange(SIDE) + moves).abs()).abs()  # mirrored at the edges
    mirrored = torch.rand(len(x), 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(len(x))[:, None, None]
    return x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@contextmanager
def part_seen(model: PreTrainedModel, window: int, generator: torch.Generator) -> Iterator[None]:
    """Let a ViT's layers see a random square of `window` patches a side only, which is cheaper (0: all)."""
    if not window:
        yield
        return
    side = model.config.image_size // model.config.patch_size
    row, column = torch.randint(side - window + 1, (2,), generator=generator).tolist()
    inside = torch.arange(1, side * side + 1).view(side, side)[row : row + window, column : column + window]
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), inside.flatten()])  # the class token is first
    hook = model.vit.embeddings.register_forward_hook(lambda _, __, hidden: hidden[:, tokens])
    yield
    hook.remove()


def lr_share(progress: float, rise: float) -> float:
    """The learning rate's share of its peak at `progress` (0..1) through the time."""
    return max(0.01, progress / rise if progress < rise else (1 - progress) / (1 - rise))


@torch.no_grad()
def accuracy(model: PreTrainedModel, data: Images) -> float:
    """Share of right answers over a whole split, in float32."""
    right = 0
    for index in torch.arange(len(data.labels)).split(500):
        predicted = model(pixel_values=inputs_of(data.batch(index), model)).logits.argmax(-1)
        right += int((predicted == data.labels[index]).sum())
    return right / len(data.labels)


if __name__ == "__main__":
    main()
