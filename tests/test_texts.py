"""A user's own texts and batches: read as jobs read rows, cut where the model ends, and never silently."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from models import DECODER, ENCODER, make
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerModel,
    MixtralConfig,
    MixtralForCausalLM,
    MPNetConfig,
    MPNetModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from dnge_compress import compress, plan
from dnge_compress.checkpoint import open_model
from dnge_compress.core.errors import DataError
from dnge_compress.data.texts import read_texts
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import length_note
from dnge_compress.signals.positions import positions_of
from dnge_compress.signals.tokenizer import needed_tokenizer, tokenizer_fault
from dnge_compress.signals.user_data import checked_data

BOOKWORM = Path(__file__).resolve().parents[1] / "examples" / "bookworm"
TEXT = "The old man looked at the sea, and the sea looked back at him. " * 3
SMALL = {"vocab_size": 61, "max_position_embeddings": 32}


@pytest.fixture(scope="module")
def model() -> Any:
    """A language model with a tokenizer beside it."""
    return open_model(BOOKWORM)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def tokens_in(data: Any) -> set[tuple[int, ...]]:
    """The rows of all batches without padding."""
    rows = [
        (ids, mask) for batch in data for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    return {tuple(ids[mask.bool()].tolist()) for ids, mask in rows}


def test_rows_of_every_kind_are_read_as_the_text_that_they_hold(model: Any, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(f"{i} {TEXT}" for i in range(3)), encoding="utf-8")
    wanted = tokens_in(read_texts(plain, model, Calibration(length=64)))
    halves = [(f"{i} {TEXT}"[:20], f"{i} {TEXT}"[20:]) for i in range(3)]
    for name, rows in {
        "text.jsonl": [{"text": a + b, "more": 3} for a, b in halves],
        "answers.jsonl": [{"prompt": a, "completion": b} for a, b in halves],
    }.items():
        assert tokens_in(read_texts(write(tmp_path / name, rows), model, Calibration(length=64))) == wanted
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"text": a + b} for a, b in halves]), encoding="utf-8")
    assert tokens_in(read_texts(listed, model, Calibration(length=64))) == wanted


def test_cut_and_empty_rows_are_counted(model: Any, tmp_path: Path) -> None:
    data = read_texts(
        write(tmp_path / "a.jsonl", [{"text": TEXT}, {"text": "short"}, {"text": " "}] * 6),
        model,
        Calibration(length=16),
    )
    assert max(batch["input_ids"].shape[1] for batch in data) == 16
    assert "12 rows of 'a.jsonl' with " in data.notes[0]
    assert ", 6 of them cut at 16 tokens; 6 rows without text left out" in data.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "word", "in 1 row, and calibration needs at least 64; give more text"),
        ("a.txt", " \n", "is empty"),
        ("a.jsonl", '{"body": "x"}', "has body; rows need text, or prompt and completion, or messages, or"),
        ("a.jsonl", "no json", "line 1: not JSON"),
        ("a.jsonl", '{"text": 3}', "column 'text' holds a number, not text"),
        ("a.pdf", "x", "is none of .jsonl, .json, .parquet, .csv, .txt"),
    ],
)
def test_data_that_are_none_are_refused_in_one_line(
    model: Any, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_texts(tmp_path / name, model, Calibration(length=64))
    assert words in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


POSITIONED: dict[str, tuple[Any, int | None]] = {
    "bert": (lambda: make("bert"), 32),
    "roberta": (lambda: RobertaModel(RobertaConfig(**ENCODER)), 30),
    "mpnet": (lambda: MPNetModel(MPNetConfig(**ENCODER)), 30),
    "longformer": (lambda: LongformerModel(LongformerConfig(**ENCODER, attention_window=4)), 30),
    "opt": (
        lambda: OPTForCausalLM(
            OPTConfig(
                **SMALL, hidden_size=24, ffn_dim=28, num_attention_heads=3, num_hidden_layers=1, word_embed_proj_dim=24
            )
        ),
        32,
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=61, n_embd=24, n_layer=1, n_head=3, n_positions=32, bos_token_id=1, eos_token_id=2)
        ),
        32,
    ),
    "llama": (lambda: make("llama"), DECODER["max_position_embeddings"]),
    "bart": (
        lambda: BartForConditionalGeneration(
            BartConfig(
                **SMALL,
                d_model=24,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=3,
                decoder_attention_heads=3,
                encoder_ffn_dim=28,
                decoder_ffn_dim=28,
            )
        ),
        32,
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=61, d_model=24, d_kv=8, d_ff=28, num_layers=1, num_heads=3, decoder_start_token_id=0)
        ),
        None,
    ),
    "xlnet": (lambda: XLNetLMHeadModel(XLNetConfig(vocab_size=61, d_model=24, n_layer=1, n_head=3, d_inner=28)), None),
}


@pytest.mark.parametrize("name", POSITIONED)
def test_how_far_positions_reach_is_asked_of_the_model(name: str) -> None:
    factory, wanted = POSITIONED[name]
    network = factory().eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert positions_of(network) == wanted
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    ids = torch.full((1, wanted or 100), 5)
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        network(input_ids=ids, **more)


def test_a_length_beyond_the_positions_is_cut_with_a_note() -> None:
    for network in (make("llama"), make("bert_mlm"), make("roberta")):
        found = plan(network, scorer="magnitude", compensate="none", kinds=["neuron"], length=1024, tokens=2048)
        cut = [note for note in found.notes if note.startswith("calibration.length 1024 is cut to ")]
        assert len(cut) == 1 and f" {positions_of(network)}: " in cut[0]
        assert length_note(network, Calibration(length=16)) == ""


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_rows_beyond_the_positions_are_cut_with_a_note(name: str) -> None:
    network: Any = make(name)
    limit = positions_of(network)
    assert limit is not None
    ids = torch.randint(4, 60, (3, 600))
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    fits = {"input_ids": ids[:2, :limit]}
    data = checked_data([fits, whole], network)
    assert [batch["input_ids"].shape for batch in data] == [(2, limit), (3, limit)]  # type: ignore[call-overload, index]
    assert data.notes == (
        f"3 data rows are longer than the {limit} positions of this {type(network).__name__}, and cut there",
    )
    assert checked_data([fits], network).notes == ()
    assert data.notes[0] in plan(network, "prune/neurons", scorer="obs", data=[whole]).notes


@pytest.mark.parametrize("shape", [(3, 600), (3, 1, 600, 600)])
def test_masks_of_numbers_are_cut_with_their_rows(shape: tuple[int, ...]) -> None:
    network: Any = make("bert")
    limit = positions_of(network)
    mask = torch.zeros(shape) if len(shape) > 2 else torch.ones(shape)
    found: Any = checked_data([{"input_ids": torch.randint(4, 60, (3, 600)), "attention_mask": mask}], network)[0]
    assert found["input_ids"].shape == (3, limit)
    assert found["attention_mask"].shape == tuple(limit if n == 600 else n for n in shape)


def folder_of(source: PreTrainedModel, place: Path) -> Path:
    source.save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BOOKWORM / name, place)
    return place


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "tokenizer.json' is truncated or corrupt"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run `git lfs pull`"),
        ('{"model": {"type": "None"}}', "can't be read"),
    ],
)
def test_a_broken_tokenizer_beside_good_weights_is_warned_of(tmp_path: Path, content: str, reason: str) -> None:
    place = folder_of(make("bert"), tmp_path / "bert")  # type: ignore[arg-type]
    assert tokenizer_fault(str(place)) == ""
    broken = folder_of(make("bert"), tmp_path / "broken")  # type: ignore[arg-type]
    (broken / "tokenizer.json").write_text(content, encoding="utf-8")
    found = plan(BertModel.from_pretrained(broken), scorer="magnitude", compensate="none")
    assert any(note.startswith("the tokenizer is copied as it is, but: ") and reason in note for note in found.notes)
    with pytest.raises(DataError, match="there is no tokenizer to train with") as caught:
        needed_tokenizer(str(broken), "to train with")
    assert reason in str(caught.value)


def test_of_a_large_file_as_much_is_taken_as_synthetic_inputs_would_be_spread_over_all(
    model: Any, tmp_path: Path
) -> None:
    rows = [{"text": f"{i} old men looked at the sea"} for i in range(2000)]
    data = read_texts(write(tmp_path / "a.jsonl", rows), model, Calibration(tokens=1024, length=64))
    tokenizer = needed_tokenizer(str(BOOKWORM), "")
    found = [row[mask.bool()] for b in data for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)]
    taken = sorted(int(tokenizer.decode(row).split()[0]) for row in found)
    gaps = [later - one for one, later in pairwise(taken)]
    tokens = sum(map(len, found))
    assert 1024 <= tokens < 1100 and taken[0] == 0 and taken[-1] > 1950 and max(gaps) <= 2 * min(gaps)
    assert data.notes[0].startswith(f"calibrated on {len(taken)} of 2,000 rows, spread evenly (calibration.tokens asks")
    few = read_texts(write(tmp_path / "b.jsonl", rows[:40]), model, Calibration(tokens=1024, length=64))
    assert few.notes[0].startswith("calibrated on 40 rows of 'b.jsonl' with ")


def test_a_tokenizer_that_is_missing_says_where_and_not_that_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "bare")  # type: ignore[operator]
    for path, reason in (
        (str(tmp_path / "bare"), f"'{tmp_path / 'bare'}' holds none"),
        (str(tmp_path / "gone"), f"the model's folder '{tmp_path / 'gone'}' isn't there"),
        ("", "the model was made from a config"),
    ):
        with pytest.raises(DataError) as caught:
            needed_tokenizer(path, "to read --data with")
        assert reason in str(caught.value) and "connect" not in str(caught.value)
    moved = LlamaForCausalLM.from_pretrained(tmp_path / "bare")
    moved.name_or_path = str(tmp_path / "gone")
    with pytest.raises(DataError, match="isn't there"):
        read_texts(write(tmp_path / "a.jsonl", [{"text": TEXT}]), moved, Calibration())


def test_conversations_are_read_as_the_template_writes_them(model: Any, tmp_path: Path) -> None:
    place = tmp_path / "chatty"
    model.save_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(BOOKWORM)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(place)
    rows = [{"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Yes."}]}] * 2
    chats = write(tmp_path / "chats.jsonl", rows)
    wanted = tuple(tokenizer(f"user: {TEXT}\nassistant: Yes.\n", add_special_tokens=False).input_ids)
    assert tokens_in(read_texts(chats, open_model(place), Calibration(length=512))) == {wanted}
    with pytest.raises(DataError, match="chat template"):
        read_texts(chats, model, Calibration(length=64))


def test_what_was_done_to_a_users_data_stands_in_plan_and_report(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "plain.txt"
    file.write_text("\n".join(f"{i} {TEXT}" for i in range(9)), encoding="utf-8")
    data = read_texts(file, model, Calibration(length=8))
    small: Any = compress(model, "prune/neurons", data=data, scorer="magnitude", compensate="none")
    assert data.notes[0] in small.dnge.report.notes and "9 of them cut at 8 tokens" in data.notes[0]


def test_states_that_experts_pick_rows_of_are_no_table_of_positions() -> None:
    """In one call of seven they lay where those of the shorter text had lain."""
    model = MixtralForCausalLM(MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)).eval()
    assert {positions_of(model) for _ in range(100)} == {DECODER["max_position_embeddings"]}
