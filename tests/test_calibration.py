"""Synthetic calibration inputs: pictures and texts about nothing, with the statistics that were asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from models import VOCABULARY, make
from torch import nn
from transformers import AutoTokenizer, MPNetConfig, MPNetForMaskedLM, XLMRobertaConfig, XLMRobertaForMaskedLM

from dnge_compress.core.errors import DataError
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals import synthetic_text, vocabulary
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.inference import call
from dnge_compress.signals.synthetic_images import dead_leaves, random_images, strokes
from dnge_compress.signals.synthetic_text import topical_texts, with_perplexity
from dnge_compress.signals.tokenizer import tokenizer_of
from dnge_compress.signals.vocabulary import DAYS, UNIFORM, WORDS, YEARS, vocabulary_of

SMALL = {"hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 3}
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
    tokenizer_of.cache_clear()


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Words:
    words = Words()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: words)
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
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: words)
    monkeypatch.setattr(synthetic_text, "MOST_BY_RANK", 0.0)  # the other half of the texts has no topic
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


@pytest.mark.parametrize("others", [0, 2000, 24_000])
def test_the_less_of_a_vocabulary_the_word_list_covers_the_more_texts_are_drawn_by_rank(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Words(others=others)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: words)
    forget()
    model, tokens = text_model("large", 33_000), {True: 0, False: 0}
    known, make_texts = vocabulary_of(model), synthetic_text._texts

    def counted(source: Any, directions: Any, rows: int, length: int, generator: Any) -> torch.Tensor:
        tokens[source is known.ranked] += rows * length
        return make_texts(source, directions, rows, length, generator)

    monkeypatch.setattr(synthetic_text, "_texts", counted)
    topical_texts(model, 30_000, 66, 2048, seeded())
    share = tokens[True] / sum(tokens.values())
    assert share == pytest.approx(min(0.5, 1 - known.coverage), abs=0.02)
    assert (share == 0) == (others == 0)
    forget()


def test_a_tokenizer_of_something_else_gives_its_own_entries_in_its_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: Words(unknown=4000))
    forget()
    found = vocabulary_of(text_model("elsewhere", 100))
    assert found.spellings == tuple((i,) for i in range(3, 100)) and len(found.frequencies.unique()) == 1
    assert found.entries.tolist() == list(range(3, 100))
    assert found.before == (1,) and found.after == (2,)
    forget()


def test_what_the_model_has_no_row_for_is_left_out_of_frame_and_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a tokenizer was saved beside a smaller model."""
    words = Words(unknown=4000)
    monkeypatch.setattr(words, "mask_token_id", 2, raising=False)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: words)
    forget()
    assert vocabulary_of(text_model("elsewhere", 3)).mask == 2
    small = vocabulary_of(text_model("elsewhere", 2))
    assert small.before == (1,) and small.after == () and small.mask is None
    forget()


class Pieces:
    """A tokenizer with a sign for the space before a word, numbered by frequency; numbers are spelled in digits."""

    unk_token_id, mask_token_id = 2, 3
    all_special_ids = (0, 1, 2, 3)
    marks: ClassVar[list[str]] = [w for w in KNOWN if not w[0].isalnum()]

    def __init__(self) -> None:
        entries = ["<s>", "</s>", "<unk>", "<mask>", *"0123456789", *self.marks]
        entries += [f"Ġword{i}" for i in range(200)] + [f"ing{i}" for i in range(50)]
        self.ids = {entry: i for i, entry in enumerate(entries)}

    def get_vocab(self) -> dict[str, int]:
        return self.ids

    def __call__(self, text, add_special_tokens: bool = True):
        if isinstance(text, list):
            return SimpleNamespace(input_ids=[self.spelled(t) for t in text])
        return SimpleNamespace(input_ids=[0, 1] if add_special_tokens else [])

    def spelled(self, text: str) -> list[int]:
        if text.isdigit():
            return [self.ids[digit] for digit in text]
        return [self.ids.get(text, self.unk_token_id)]


def test_words_by_rank_leave_marks_and_numbers_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: pieces)
    forget()
    model = text_model("pieces", len(pieces.ids))
    ranked = vocabulary_of(model).ranked
    assert ranked is not None and ranked.ranked is None and ranked.coverage == 1
    words = [pieces.ids[f"Ġword{i}"] for i in range(200)]
    marks, digits = {pieces.ids[m] for m in pieces.marks}, set(range(4, 14))
    of_kind = {"word": 0.0, "mark": 0.0, "number": 0.0}
    for spelling, frequency in zip(ranked.spellings, ranked.frequencies.tolist(), strict=True):
        is_number = set(spelling) <= digits
        of_kind["number" if is_number else "mark" if spelling[0] in marks else "word"] += frequency
    assert of_kind == pytest.approx({"word": 0.8, "mark": 0.1, "number": 0.1}, abs=1e-5)
    assert sum(set(s) <= digits for s in ranked.spellings) == len(DAYS) + len(YEARS)
    assert ranked.entries.tolist() == words and ranked.spellings[:200] == tuple((i,) for i in words)
    own = ranked.frequencies[:200]
    assert bool((own.diff() < 0).all()) and float(own.min()) > 0.8 * UNIFORM / 200
    assert float(own[0]) == pytest.approx(0.8 * (UNIFORM / 200 + (1 - UNIFORM) * zipf(0) / sum(map(zipf, range(200)))))
    forget()


def zipf(rank: int) -> float:
    return 1 / (rank + 2.7)


def test_special_tokens_occur_in_the_frame_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: pieces)
    forget()
    torch.manual_seed(0)
    for rows in topical_texts(text_model("pieces", len(pieces.ids)), 20_000, 40, 2048, seeded()):
        assert bool((rows[:, 0] == 0).all()) and bool((rows[:, -1] == 1).all())
        assert not bool(torch.isin(rows[:, 1:-1], torch.tensor(pieces.all_special_ids)).any())
        assert int(rows.max()) < len(pieces.ids)
    forget()


@pytest.mark.parametrize(
    ("model", "config"), [(XLMRobertaForMaskedLM, XLMRobertaConfig), (MPNetForMaskedLM, MPNetConfig)]
)
def test_texts_fit_models_that_count_positions_from_behind_the_paddings(model: Any, config: Any) -> None:
    made = model(config(**SMALL, vocab_size=VOCABULARY, max_position_embeddings=34, pad_token_id=1)).eval()
    batches = synthesize(made, Calibration(tokens=128, length=64))
    assert max(batch["input_ids"].shape[1] for batch in batches) == 32
    with torch.no_grad():
        assert all(torch.isfinite(call(made, batch)).all() for batch in batches)


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
