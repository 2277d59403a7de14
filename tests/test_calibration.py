"""Synthetic calibration inputs: pictures and texts about nothing, with the statistics that were asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from models import make
from torch import nn

from dnge_compress.core.errors import DataError
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals import vocabulary
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.synthetic_images import dead_leaves, random_images, strokes
from dnge_compress.signals.synthetic_text import topical_texts, with_perplexity
from dnge_compress.signals.vocabulary import WORDS, vocabulary_of

KNOWN = [line.split("\t")[0] for line in WORDS.read_text(encoding="utf-8").splitlines()]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("paint", [dead_leaves, strokes, random_images])
@pytest.mark.parametrize("shape", [(48, 3, 32, 32), (48, 1, 28, 20), (8, 3, 96, 80)])
def test_images_are_finite_about_standardised_and_seeded(paint, shape: tuple[int, ...]) -> None:
    images = paint(shape, seeded())
    assert images.shape == shape and torch.isfinite(images).all()
    assert abs(float(images.mean())) < 0.7 and 0.5 < float(images.std()) < 2
    assert torch.equal(images, paint(shape, seeded()))
    assert not torch.equal(images[0], images[1])


def test_leaves_have_flat_regions_and_edges_as_photographs_do() -> None:
    """Heavy tails: a natural image's differences between neighbours are mostly small and sometimes large."""

    def kurtosis(images: torch.Tensor) -> float:
        steps = images.diff(dim=-1).flatten()
        return float((steps - steps.mean()).pow(4).mean() / steps.var().square())

    shape = (64, 3, 32, 32)
    assert kurtosis(dead_leaves(shape, seeded())) > 6 > 4.5 > kurtosis(torch.randn(shape, generator=seeded()))


class Words:
    """A tokenizer that knows whole words only; `unknown` of them it doesn't."""

    unk_token_id = 0
    mask_token_id = None
    all_special_ids = (0, 1, 2)
    entries: ClassVar[list[str]] = [w for w in KNOWN if w[0].isalnum()]

    def __init__(self, unknown: int = 0, others: int = 0) -> None:
        self.ids = {w: i for i, w in enumerate(KNOWN[unknown:], start=3)}
        self.others = {f"other{i}": 3 + len(KNOWN) + i for i in range(others)}

    def get_vocab(self) -> dict[str, int]:
        return self.ids | self.others

    def __call__(self, text, add_special_tokens: bool = True):
        if isinstance(text, list):
            return SimpleNamespace(input_ids=[[self.ids.get(t.strip(), 0)] for t in text])
        return SimpleNamespace(input_ids=[1, 2] if add_special_tokens else [])


def forget() -> None:
    vocabulary._vocabulary.cache_clear()
    vocabulary.tokenizer_of.cache_clear()


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Words:
    words = Words()
    monkeypatch.setattr(vocabulary.AutoTokenizer, "from_pretrained", lambda *a, **k: words)
    forget()
    yield words
    forget()


def text_model(path: str = "somewhere", size: int = 9000) -> SimpleNamespace:
    return SimpleNamespace(name_or_path=path, get_input_embeddings=lambda: nn.Embedding(size, 16))


def test_texts_have_the_frequencies_of_english_and_the_frame_of_the_tokenizer(tokenizer: Words) -> None:
    torch.manual_seed(0)
    ids = torch.cat([b.flatten() for b in topical_texts(text_model(), 20_000, 64, 2048, seeded())])
    share = float((ids == tokenizer.ids["the"]).float().mean())
    assert 0.035 < share < 0.055  # 47,500 in a million
    rows = topical_texts(text_model(), 2000, 32, 2048, seeded())
    assert all((r[:, 0] == 1).all() and (r[:, -1] == 2).all() for r in rows)
    assert sorted({r.shape[1] for r in rows}) == [8, 16, 32]


def test_what_the_word_list_leaves_out_of_a_vocabulary_comes_in_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(others=24_000)
    monkeypatch.setattr(vocabulary.AutoTokenizer, "from_pretrained", lambda *a, **k: words)
    forget()
    torch.manual_seed(0)
    embedding = nn.Embedding(33_000, 16)
    model = SimpleNamespace(name_or_path="large", get_input_embeddings=lambda: embedding)
    assert 0.2 < vocabulary_of(model).coverage < 0.3
    rows = [b[:, 1:-1] for b in topical_texts(model, 30_000, 66, 2048, seeded()) if b.shape[1] == 66]
    outside = torch.cat([b.flatten() for b in rows]) >= 3 + len(KNOWN)
    assert 0.45 < float(outside.float().mean()) < 0.7  # three quarters of all entries, of three quarters of the places

    def likeness(batches: list[torch.Tensor]) -> float:
        vectors = [nn.functional.normalize(embedding.weight.detach()[row], dim=1) for b in batches for row in b[:6]]
        return sum(float((v @ v.T).mean()) for v in vectors) / len(vectors)

    mixed = [b.flatten()[torch.randperm(b.numel(), generator=seeded())].view(b.shape) for b in rows]
    assert likeness(rows) > likeness(mixed) + 0.05
    forget()


def test_a_tokenizer_of_something_else_leaves_bare_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary.AutoTokenizer, "from_pretrained", lambda *a, **k: Words(unknown=4000))
    forget()
    found = vocabulary_of(text_model("elsewhere", 100))
    assert len(found.spellings) == 100 and len(found.frequencies.unique()) == 1 and found.before == ()
    forget()


def test_a_topic_has_the_perplexity_asked_for() -> None:
    p = with_perplexity(torch.randn(5, 400, generator=seeded()), 32)
    assert torch.allclose((-(p * p.log()).sum(-1)).exp(), torch.full((5,), 32.0), rtol=0.02)


def test_a_kind_that_does_not_fit_offers_one_that_a_recipe_takes() -> None:
    with pytest.raises(DataError, match="kind 'words' doesn't fit a Sequential; use 'auto'"):
        synthesize(torch.nn.Sequential(torch.nn.Linear(3, 2)), Calibration(kind="words"), torch.randn(2, 3))


def test_example_inputs_give_a_convolutional_network_its_image_size() -> None:
    model = make("resnet_basic")
    example = {"pixel_values": torch.zeros(1, model.config.num_channels, 24, 40)}
    inputs = synthesize(model, Calibration(tokens=64), example)
    assert inputs[0]["pixel_values"].shape[-2:] == (24, 40)
