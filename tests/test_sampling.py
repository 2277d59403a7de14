"""Rows that a model writes itself."""

from __future__ import annotations

import pytest
import torch
from models import VOCABULARY, make
from transformers import BertConfig, BertLMHeadModel

from dnge_compress.core.errors import DataError
from dnge_compress.jobs.data.sampling import ROWS_AT_ONCE, sample_rows
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.sampled_text import sample_batches


def test_rows_have_the_length_and_together_the_tokens_that_were_asked_for() -> None:
    rows = sample_rows(make("llama"), tokens=100, length=13, seed=0)
    assert [len(row) for row in rows] == [13] * 8
    assert all(0 <= token < VOCABULARY for row in rows for token in row)


def test_rows_begin_with_the_start_of_text_and_then_differ() -> None:
    model = make("gpt2")
    rows = sample_rows(model, tokens=64, length=8, seed=0)
    assert {row[0] for row in rows} == {model.config.bos_token_id}
    assert len({tuple(row) for row in rows}) == len(rows)


def test_rows_are_no_longer_than_the_model_has_positions_for() -> None:
    model = make("gpt2")
    assert {len(row) for row in sample_rows(model, tokens=100, length=500, seed=0)} == {model.config.n_positions}


def test_the_seed_decides_what_is_written() -> None:
    model = make("llama")
    first = sample_rows(model, tokens=72, length=12, seed=1)
    assert first == sample_rows(model, tokens=72, length=12, seed=1)
    assert first != sample_rows(model, tokens=72, length=12, seed=2)


@torch.no_grad()
def test_the_cache_of_keys_and_values_changes_nothing() -> None:
    model = make("llama").double()  # in double precision no rounding decides between two tokens
    (cached,) = sample_batches(model, 3 * [[model.config.bos_token_id]], 10, 3, torch.Generator().manual_seed(5))
    generator, ids = torch.Generator().manual_seed(5), torch.full((3, 1), model.config.bos_token_id)
    for _ in range(9):
        p = model(input_ids=ids).logits[:, -1].float().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], 1)
    assert torch.equal(cached, ids)


def test_calibration_text_of_a_language_model_is_written_in_the_same_way() -> None:
    model = make("llama")
    inputs = torch.cat([batch["input_ids"] for batch in synthesize(model, Calibration(tokens=72, length=12, seed=4))])
    assert inputs.tolist() == sample_rows(model, tokens=72, length=12, seed=4)


def test_progress_counts_rows_up_to_all() -> None:
    seen: list[tuple[str, int, int]] = []
    _, most = ROWS_AT_ONCE
    sample_rows(make("llama"), 4 * (most + 3), 4, seed=0, progress=lambda *step: seen.append(step))
    assert seen == [("write", most, most + 3), ("write", most + 3, most + 3)]


def test_writing_leaves_the_model_and_the_global_generator_as_they_were() -> None:
    model = make("llama").train()
    before = torch.get_rng_state()
    sample_rows(model, tokens=20, length=10, seed=0)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["bert", "vit", "mlp"])
def test_a_model_that_writes_no_text_is_refused(name: str) -> None:
    model = make(name)
    with pytest.raises(DataError, match=f"{type(model).__name__} writes no text"):
        sample_rows(model, tokens=20, length=10, seed=0)


def test_a_model_that_remembers_nothing_is_refused() -> None:
    config = BertConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=28,
        num_hidden_layers=1,
        num_attention_heads=3,
        is_decoder=False,
    )
    with pytest.raises(DataError, match="remembers nothing"):
        sample_rows(BertLMHeadModel(config), tokens=20, length=10, seed=0)
