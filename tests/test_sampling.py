"""Rows that a model writes itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from models import VOCABULARY, make
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel

from dnge_compress.core.errors import DataError
from dnge_compress.data.sampling import sample_rows
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals import sampled_text
from dnge_compress.signals.beginnings import beginnings, ends
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.draws import drawn
from dnge_compress.signals.masked_text import fill_batches
from dnge_compress.signals.sampled_text import cache_name, continued, sample_batches, text_length
from dnge_compress.signals.vocabulary import Vocabulary

MASK = 3


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


def test_a_number_of_positions_below_one_stands_for_any() -> None:
    model = make("llama")
    model.config.max_position_embeddings = -1
    assert text_length(model, 300) == 300


def test_the_seed_decides_what_is_written() -> None:
    model = make("llama")
    first = sample_rows(model, tokens=72, length=12, seed=1)
    assert first == sample_rows(model, tokens=72, length=12, seed=1)
    assert first != sample_rows(model, tokens=72, length=12, seed=2)


@torch.no_grad()
def test_the_cache_of_keys_and_values_changes_nothing() -> None:
    model = make("llama").double()  # in double precision no rounding decides between two tokens
    (cached,) = sample_batches(model, 3 * [[model.config.bos_token_id]], 10, torch.Generator().manual_seed(5))
    generator, ids = torch.Generator().manual_seed(5), torch.full((3, 1), model.config.bos_token_id)
    for _ in range(9):
        ids = torch.cat([ids, drawn(model(input_ids=ids).logits[:, -1], generator)[0]], 1)
    assert torch.equal(cached, ids)


def test_processes_share_the_writing_and_have_the_text_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, starts = make("llama"), 5 * [[1]] + 4 * [[1, 2]]
    monkeypatch.setattr(sampled_text, "rows_at_once", lambda model, length: 2)

    def written(number: int, processes: int) -> tuple[list[torch.Tensor], torch.Tensor, list[tuple[int, int]]]:
        monkeypatch.setattr(sampled_text, "world", lambda: processes)
        monkeypatch.setattr(sampled_text, "rank", lambda: number)
        monkeypatch.setattr(sampled_text, "own_share", lambda parts: list(enumerate(parts))[number::processes])
        told: list[tuple[int, int]] = []
        generator = torch.Generator().manual_seed(5)
        found = [*sample_batches(model, starts, 8, generator, lambda done, total: told.append((done, total)))]
        return found, generator.get_state(), told

    alone, state, _ = written(0, 1)
    shares = [written(number, 3) for number in range(3)]  # summed by nobody, so each has its own rows alone
    assert [torch.equal(*pair) for pair in zip(alone, shares[0][0], strict=True)] == [True, False, False, True, False]
    for whole, *parts in zip(alone, *(found for found, _, _ in shares), strict=True):
        assert torch.equal(whole, torch.stack(parts).sum(0))
    for _, own, told in shares:
        assert torch.equal(own, state) and told[-1][0] == told[-1][1]


def test_classes_are_drawn_as_often_as_the_logits_say() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0]) + 300
    found, nats = drawn(logits.expand(20_000, -1), torch.Generator().manual_seed(0))
    wanted = logits.softmax(0)
    assert (found.flatten().bincount(minlength=4) / len(found) - wanted).abs().max() < 0.01
    assert torch.allclose(nats, -wanted.log()[found])


def test_a_model_without_memory_writes_what_it_would_with_one() -> None:
    model = make("llama").double()
    start = torch.full((3, 1), model.config.bos_token_id)
    with_memory, _ = continued(model, start, 10, torch.Generator().manual_seed(5))
    forward = model.forward

    def forgetful(**inputs: Any) -> Any:
        return forward(**{k: v for k, v in inputs.items() if k != cache_name(model)} | {"use_cache": False})

    with patch.object(model, "forward", forgetful), patch("dnge_compress.signals.sampled_text.READ_TOKENS", 8):
        without, _ = continued(model, start, 10, torch.Generator().manual_seed(5))
    assert torch.equal(with_memory, without)


def test_calibration_texts_are_twice_as_long_as_the_recipe_says() -> None:
    model = make("llama")
    model.config.eos_token_id = None  # so that no text ends early
    batches = synthesize(model, Calibration(tokens=96, length=4, seed=4))
    assert [row.shape[0] for batch in batches for row in batch["input_ids"]] == [8] * 12
    assert all((batch["input_ids"][:, 0] == model.config.bos_token_id).all() for batch in batches)


def test_what_comes_after_the_end_of_a_text_does_not_count() -> None:
    model = make("llama")
    model.config.eos_token_id = 7
    with torch.no_grad():
        model.lm_head.weight[7] = 0.2 * model.lm_head.weight.norm(dim=1).max() * torch.randn(model.config.hidden_size)
    batches = synthesize(model, Calibration(tokens=640, length=16, seed=4))
    ended = 0
    for batch in batches:
        ids, mask = batch["input_ids"], batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        for row, kept in zip(ids.tolist(), mask.tolist(), strict=True):
            end = row.index(7, 1) + 1 if 7 in row[1:] else len(row)
            assert kept == [1] * end + [0] * (len(row) - end)
            ended += end < len(row)
    assert ended


def controlled(monkeypatch: pytest.MonkeyPatch, looping: int = -1) -> torch.nn.Module:
    """A model that is surer of what it writes after its tokens 3 and 5, and repeats itself after `looping`, and a
    tokenizer that calls 2 to 5 control tokens; its config names a start token that doesn't exist."""
    model = make("gpt2")
    model.config.bos_token_id = model.config.eos_token_id = 50_256
    vocabulary = {"[A]": 2, "[B]": 3, "[C]": 4, "[D]": 5, "word": 6}
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary, all_special_ids=[], eos_token_id=None, sep_token_id=4)
    monkeypatch.setattr("dnge_compress.signals.beginnings.tokenizer_of", lambda path: tokenizer)

    def sure(model: Any, ids: torch.Tensor, length: int, generator: torch.Generator) -> Any:
        nats = torch.where(torch.isin(ids, torch.tensor([3, 5])), 1.0, 2.0)
        nats[ids == looping] = 0.05
        return ids.expand(-1, length), nats.repeat(1, length - 1)

    monkeypatch.setattr("dnge_compress.signals.beginnings.continued", sure)
    return model


def test_without_a_start_token_texts_begin_with_the_control_tokens_that_make_the_model_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = controlled(monkeypatch)
    assert beginnings(model, torch.Generator()) == [(3,), (5,)]
    assert ends(model) == (4,)


def test_a_control_token_after_which_the_model_only_repeats_itself_begins_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert beginnings(controlled(monkeypatch, looping=3), torch.Generator()) == [(5,)]


def test_control_tokens_are_tried_within_the_models_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("gpt2")
    model.config.bos_token_id = model.config.eos_token_id = 50_256
    known = {"[A]": 2, "[B]": 3, "[C]": VOCABULARY}
    tokenizer = SimpleNamespace(get_vocab=lambda: known, all_special_ids=[50_256])
    monkeypatch.setattr("dnge_compress.signals.beginnings.tokenizer_of", lambda path: tokenizer)
    found = beginnings(model, torch.Generator().manual_seed(0))
    assert found in ([(2,)], [(3,)])


def test_without_a_tokenizer_texts_begin_in_the_middle_of_what_the_model_writes() -> None:
    model = make("gpt2")
    model.config.bos_token_id = model.config.eos_token_id = 50_256
    found = beginnings(model, torch.Generator().manual_seed(0))
    assert (
        len(found) == 8 * (model.config.n_positions // 2)
        and len(set(found)) > 5
        and all(0 <= t < VOCABULARY for (t,) in found)
    )
    assert ends(model) == ()


def filled(model: Any, seed: int, rows: int = 7, length: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(fill_batches(model, rows, length, 3, ((1,), (2, 5)), MASK, generator))


@pytest.mark.parametrize("length", [4, 12, 32])
def test_masks_are_filled_between_the_frame(length: int) -> None:
    model = make("bert_mlm")
    batches = filled(model, 0, length=length)
    assert [batch.shape for batch in batches] == [(3, length), (3, length), (1, length)]
    rows = torch.cat(batches)
    assert bool((rows[:, 0] == 1).all()) and bool((rows[:, -2:] == torch.tensor([2, 5])).all())
    assert not bool((rows == MASK).any()) and int(rows.min()) >= 0 and int(rows.max()) < VOCABULARY
    assert len({tuple(row) for row in rows.tolist()}) > 1


def test_the_seed_decides_how_masks_are_filled() -> None:
    model, before = make("bert_mlm"), torch.get_rng_state()
    first, again, other = (torch.cat(filled(model, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_an_equal_share_of_the_masks_is_filled_in_each_round() -> None:
    model, left = make("bert_mlm"), []
    model.register_forward_pre_hook(
        lambda m, args, named: left.append((named["input_ids"] == MASK).sum(1)), with_kwargs=True
    )
    filled(model, 0, rows=3, length=32)
    masks = torch.stack([*left, torch.zeros(3, dtype=torch.long)])
    assert len(left) == 16 and masks[0].tolist() == [29, 29, 29]
    assert set(masks.diff(dim=0).flatten().tolist()) == {-1, -2}


def test_a_masked_models_own_texts_have_four_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Vocabulary(
        spellings=((9,),),
        frequencies=torch.ones(1),
        entries=torch.tensor([9]),
        coverage=1.0,
        before=(1,),
        after=(2,),
        mask=MASK,
    )
    monkeypatch.setattr("dnge_compress.signals.calibration.vocabulary_of", lambda model: known)
    model = make("bert_mlm")
    batches = synthesize(model, Calibration(tokens=640, length=8))
    lengths = [row.shape[0] for batch in batches for row in batch["input_ids"]]
    assert {n: lengths.count(n) for n in lengths} == {32: 5, 26: 6, 19: 8, 13: 12}
    for batch in batches:
        ids = batch["input_ids"]
        assert bool((ids[:, 0] == 1).all()) and bool((ids[:, -1] == 2).all()) and not bool((ids == MASK).any())
        assert bool(batch["attention_mask"].all())


@pytest.mark.parametrize("strict", [False, True])
def test_a_chat_model_is_also_asked_by_itself(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:

    class Chat:
        chat_template = "x"

        def apply_chat_template(self, messages: Any, tokenize: bool, date_string: str) -> str:
            if strict:
                raise TypeError("a system's words first")
            return f"<user>{messages[0]['content']}<end>"

        def __call__(self, text: str, add_special_tokens: bool) -> Any:
            return SimpleNamespace(input_ids=[8, 9] if text == "<user>" else [])

    monkeypatch.setattr("dnge_compress.signals.beginnings.tokenizer_of", lambda path: Chat())
    model = make("llama")
    start = (model.config.bos_token_id,)
    assert beginnings(model, torch.Generator()) == ([start] if strict else [start, (8, 9)])


@pytest.mark.parametrize(("declared", "controlled"), [(1, (1, 7, 8)), (None, (7, 8))])
def test_a_prompt_begins_once_and_as_its_model_declares(
    declared: int | None, controlled: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Framing:
        all_special_ids, bos_token_id, unk_token_id = (0, 1, 2, 7), 1, 0

        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            own = [{"<s>": 1, "<control>": 7, "§": 0}.get(word, 8) for word in text.split()]
            return SimpleNamespace(input_ids=[1, *own, 2] if add_special_tokens else own)

    monkeypatch.setattr("dnge_compress.signals.beginnings.tokenizer_of", lambda path: Framing())
    model = make("llama")
    model.config.bos_token_id, model.config.eos_token_id = declared, 2
    prompts = ("<control> a", "a", "§ a", "<s> a")
    assert beginnings(model, torch.Generator(), prompts) == [controlled, (1, 8), (1, 0, 8), (1, 8)]


def test_prompts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(DataError, match="calibration.prompts are texts, and the model has no tokenizer"):
        synthesize(make("llama"), Calibration(tokens=64, length=8, prompts=("Once",)))


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_models_without_attention_heads_write(name: str) -> None:
    config = AutoConfig.for_model(name, vocab_size=61, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    model = AutoModelForCausalLM.from_config(config).eval()
    (ids,) = sample_batches(model, 3 * [[1]], 6, torch.Generator().manual_seed(0))
    assert ids.shape == (3, 6)


def test_progress_counts_tokens_up_to_all() -> None:
    seen: list[tuple[str, int, int]] = []
    with patch("dnge_compress.signals.sampled_text.ROWS_AT_ONCE", (1, 3)):
        sample_rows(make("llama"), 16, 4, seed=0, progress=lambda *step: seen.append(step))
    assert seen == [("write", done, 12) for done in (2, 4, 6, 8, 10, 12)]


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
