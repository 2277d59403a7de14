"""Two models side by side on held-out inputs: what is measured, what is refused, what the command prints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from dnge_compress import compare, compress, save
from dnge_compress.cli.main import main
from dnge_compress.core.errors import DataError
from dnge_compress.report import speeds

QUICK: dict[str, Any] = {"tokens": 64, "length": 16, "scorer": "magnitude"}


def texts(seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Two batches of token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(4, models.VOCABULARY, (3, 12), generator=generator)} for _ in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer in `base`, and a smaller one in `small`."""
    place = tmp_path_factory.mktemp("models")
    models.make("llama").save_pretrained(place / "base")  # type: ignore[operator]
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(58))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(place / "base")
    save(compress(place / "base", ratio=0.3, **QUICK), place / "small")
    (place / "heldout.txt").write_text("\n".join(f"w{i % 50} w{i * 7 % 50} w3" for i in range(60)), encoding="utf-8")
    return place


def test_a_model_is_compared_with_a_smaller_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_seconds", lambda model, batch: sum(p.numel() for p in model.parameters()) * 1e-6)
    found = compare(folder / "base", folder / "small", data=texts())
    base, small = found.milestones
    assert (base.name, small.name) == ("base", "small") and small.params < base.params and small.bytes < base.bytes
    model: Any = models.make("llama")
    with torch.no_grad():
        loss = sum(float(model(**batch, labels=batch["input_ids"]).loss) for batch in texts()) / 2
    assert base.loss == pytest.approx(loss, rel=1e-4) and small.loss is not None and math.isfinite(small.loss)
    assert 0 < found.agreement < 1 and found.damage > 0 and not found.is_cosine
    assert found.speedup == pytest.approx(base.params / small.params)
    assert found.samples and all(set(s.continuations) == {"base", "small"} for s in found.samples)
    text, html = str(found), found.to_html()
    for shown in ("perplexity", "same answers", "divergence", f"{found.speedup:.2f}×", "base", "small"):
        assert shown in text and shown in html


def test_a_model_agrees_with_itself_and_is_as_fast() -> None:
    model = models.make("llama")
    found = compare(model, model, data=texts())
    assert found.agreement == 1 and found.damage == pytest.approx(0, abs=1e-6) and found.speedup == 1
    assert found.milestones[0].name != found.milestones[1].name and "speed the same" in str(found)
    assert found.samples == ()  # there is no tokenizer


def test_classifiers_are_compared_by_accuracy_and_encoders_by_their_direction() -> None:
    vit: Any = models.make("vit")
    images = models.example_inputs("vit")
    labelled = [{**images, "labels": vit(**images).logits.argmax(-1)}]
    found = compare(vit, compress(vit, ratio=0.3, **QUICK), data=labelled, names=("large", "small"))
    assert found.accuracies[0] == 1 and "accuracy of large 100.0 %" in " ".join(str(found).split())
    bert = models.make("bert")
    apart = compare(bert, compress(bert, ratio=0.3, **QUICK), data=texts())
    assert apart.is_cosine and 0 < apart.agreement < 1 and apart.milestones[0].loss is None and "cosine" in str(apart)


def test_models_that_answer_otherwise_are_refused() -> None:
    with pytest.raises(DataError, match="compare models of one task and one tokenizer"):
        compare(nn.Linear(4, 3), nn.Linear(4, 5), data=[torch.randn(2, 4)])
    with pytest.raises(DataError, match="data is empty"):
        compare(nn.Linear(4, 3), nn.Linear(4, 3), data=[])


def test_the_command_compares_two_folders(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, small, text = str(folder / "base"), str(folder / "small"), str(folder / "heldout.txt")
    page = tmp_path / "compared.html"
    assert main(["compare", base, small, "--data", text, "-o", str(page)]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "judged on" in out and page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["compare", base, small, "--data", text, "--json"]) == 0
    assert [m["name"] for m in json.loads(capsys.readouterr().out)["milestones"]] == ["base", "small"]
    for words, command in (
        ("compare needs text", [base, small]),
        ("doesn't exist", [base, small, "--data", "none.txt"]),
        ("there is no folder", [base, str(tmp_path / "none"), "--data", text]),
        ("exists; name another file", [base, small, "--data", text, "-o", str(page)]),
    ):
        assert main(["compare", *command]) == 2
        out, err = capsys.readouterr()
        assert out == "" and words in err and err.count("dnge: error") == 1


def test_models_of_other_vocabularies_are_refused_in_either_order() -> None:
    whole, fewer = models.make("llama"), models.make("llama")
    fewer.resize_token_embeddings(whole.config.vocab_size - 8)
    for pair in ((whole, fewer), (fewer, whole)):
        with pytest.raises(DataError, match="read other tokens"):
            compare(*pair, data=[torch.tensor([[whole.config.vocab_size - 1, 2, 3]])])


def test_samples_begin_with_text_and_not_with_padding(folder: Path) -> None:
    padded = {"input_ids": torch.full((2, 12), 2), "attention_mask": torch.zeros(2, 12, dtype=torch.long)}
    for row, (first, last) in enumerate([(4, 10), (0, 12)]):
        padded["input_ids"][row, first:last] = torch.arange(first, last) + 5
        padded["attention_mask"][row, first:last] = 1
    found = compare(folder / "base", folder / "small", data=[padded])
    assert [sample.beginning for sample in found.samples] == ["w6 w7 w8"]  # half of the first row's tokens
