"""Rows for a job: what is learned of each kind of data, and what is said about data that don't fit."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dnge_compress.core.errors import DataError
from dnge_compress.data.about_tokens import about_tokens
from dnge_compress.data.changes import changed, marks_of
from dnge_compress.data.kinship import signs_of
from dnge_compress.data.reading import read_rows
from dnge_compress.data.rows import Collator, Rows
from dnge_compress.data.sources import check_sources
from dnge_compress.data.splitting import split_rows
from dnge_compress.recipes.data_schema import Dataset

BOOKWORM = Path(__file__).resolve().parents[1] / "examples" / "bookworm"
CHATML = """{%- for m in messages -%}
<|{{ m.role }}|>{{ m.content }}<|end|>
{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""
MARKED = """{%- for m in messages -%}
<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}
{%- else %}{{ m.content }}<|end|>{% endif %}
{% endfor -%}"""
# Like Qwen3: what the assistant thought is only kept in the last turn.
FORGETFUL = CHATML.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think>{% endif %}{{ m.content }}"
)
TALK = [
    {"role": "user", "content": "Who goes there?"},
    {"role": "assistant", "content": "A friend."},
    {"role": "user", "content": "Come in."},
    {"role": "assistant", "content": "Gladly, thank you."},
]


@pytest.fixture(scope="module")
def books() -> Any:
    return AutoTokenizer.from_pretrained(BOOKWORM)


@pytest.fixture
def chatty() -> Callable[[str], Any]:
    def make(template: str) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(BOOKWORM)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="module")
def spaced() -> Any:
    """Like Llama 2's: every text begins with a space of the tokenizer's own, and with a start-of-text token."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    inner.train_from_iterator(
        ["the answer is yes\n", "yes or no: no\n"] * 9, trainers.BpeTrainer(vocab_size=90, special_tokens=special)
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def jsonl(file: Path, rows: Iterable[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(path: Path | str, tokenizer: Any, *, max_length: int = 64, packing: bool = False, **source: Any) -> Rows:
    one = Dataset(path=str(path), **source)
    return read_rows([one], tokenizer, max_length=max_length, packing=packing, folder=Path("nowhere"))


def texts(rows: Rows, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row["input_ids"]) for row in rows.examples]


def learned(rows: Rows, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row["labels"][row["labels"] >= 0]) for row in rows.examples]


# --- text


def test_without_packing_each_text_is_a_row_that_ends(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "The first one.\n"}, {"text": "Another."}])
    rows = read(file, books)
    assert texts(rows, books) == ["The first one.\n<|endoftext|>", "Another.<|endoftext|>"]
    assert rows.counts["rows"] == rows.counts["read"] == 2


def test_packed_texts_fill_rows_and_lose_no_token(tmp_path: Path, books: Any) -> None:
    said = ["It was a dark night.", "She said nothing, and went out.", "The end."]
    rows = read(jsonl(tmp_path / "a.jsonl", [{"text": t} for t in said]), books, max_length=8, packing=True)
    lengths = [len(row["input_ids"]) for row in rows.examples]
    assert set(lengths[:-1]) == {8} and 2 <= lengths[-1] <= 8
    assert "".join(texts(rows, books)) == "".join(t + "<|endoftext|>" for t in said)
    assert rows.counts["cut"] == 0 and rows.counts["tokens"] == sum(lengths)


def test_a_last_packed_row_of_one_token_is_left_out(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "It was a dark night, and nobody was about."}])
    tokens = len(books("It was a dark night, and nobody was about.")["input_ids"]) + 1
    assert read(file, books, max_length=tokens - 1, packing=True).counts["tokens"] == tokens - 1
    assert read(file, books, max_length=tokens - 2, packing=True).counts["rows"] == 2


def test_long_rows_are_cut_and_counted(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "Yes. " * 50}, {"text": "No."}])
    rows = read(file, books, max_length=10)
    assert [len(row["input_ids"]) for row in rows.examples] == [10, 3]
    assert rows.counts["cut"] == 1


def test_a_first_token_is_never_learned_and_never_counted(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "It was a dark night."}] * 3)
    for packing in (False, True):
        rows = read(file, books, max_length=6, packing=packing)
        assert all(row["labels"][0] == -100 for row in rows.examples)
        counted = sum(int((row["labels"] != -100).sum()) for row in rows.examples)
        assert rows.counts["learned_tokens"] == counted == rows.counts["tokens"] - rows.counts["rows"]


def test_a_tokenizer_that_begins_texts_with_a_token_begins_rows_with_it(tmp_path: Path, spaced: Any) -> None:
    rows = read(jsonl(tmp_path / "a.jsonl", [{"text": "yes"}, {"text": "no"}]), spaced, packing=True)
    assert texts(rows, spaced) == ["<s> yes</s><s> no</s>"]


def test_blank_and_missing_texts_are_skipped_and_counted(tmp_path: Path, books: Any) -> None:
    rows = read(jsonl(tmp_path / "a.jsonl", [{"text": " \n"}, {"text": None}, {"text": "Yes."}]), books)
    assert texts(rows, books) == ["Yes.<|endoftext|>"]
    assert (rows.counts["read"], rows.counts["empty"], rows.counts["rows"]) == (3, 2, 1)


def test_a_packed_txt_file_is_one_text_with_its_line_breaks(tmp_path: Path, books: Any) -> None:
    (tmp_path / "book.txt").write_text("Chapter one.\n\nIt was dark.\n")
    rows = read(tmp_path / "book.txt", books, packing=True)
    assert texts(rows, books) == ["Chapter one.\n\nIt was dark.\n<|endoftext|>"]


def test_an_unpacked_txt_file_is_a_text_per_line(tmp_path: Path, books: Any) -> None:
    (tmp_path / "book.txt").write_text("Chapter one.\n\nIt was dark.\n")
    rows = read(tmp_path / "book.txt", books)
    assert texts(rows, books) == ["Chapter one.<|endoftext|>", "It was dark.<|endoftext|>"]
    assert rows.counts["empty"] == 1


def test_a_txt_file_of_many_blocks_is_still_one_text(
    tmp_path: Path, spaced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "".join(f" yes or no: {'yes' * (i % 3)}\n" for i in range(40))
    (tmp_path / "book.txt").write_text(said)
    monkeypatch.setattr("dnge_compress.data.reading.BATCH_CHARACTERS", 100)
    ids = [row["input_ids"] for row in read(tmp_path / "book.txt", spaced, packing=True).examples]
    flat = np.concatenate(ids)
    assert (flat == spaced.bos_token_id).sum() == (flat == spaced.eos_token_id).sum() == 1
    assert flat[0] == spaced.bos_token_id and flat[-1] == spaced.eos_token_id
    assert "".join(spaced.decode(flat[1:-1]).split()) == "".join(said.split())


def test_only_files_that_are_read_count_as_changed_new_or_gone(tmp_path: Path) -> None:
    for name in ("train-1.jsonl", "train-2.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n', encoding="utf-8")
    sources = [Dataset(path=str(tmp_path), split="train[:50%]")]
    before = marks_of(sources, tmp_path)
    assert {Path(file).name for file in before} == {"train-1.jsonl", "train-2.jsonl"}
    (tmp_path / "test.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    (tmp_path / "validation.jsonl").write_text('{"text": "c"}\n', encoding="utf-8")
    assert changed(sources, tmp_path, before) is None
    assert changed([Dataset(path=str(tmp_path), split="train+test")], tmp_path, before) == str(tmp_path / "test.jsonl")
    (tmp_path / "train-3.jsonl").write_text('{"text": "d"}\n', encoding="utf-8")
    assert changed(sources, tmp_path, before) == str(tmp_path / "train-3.jsonl")
    (tmp_path / "train-3.jsonl").unlink()
    (tmp_path / "train-2.jsonl").unlink()
    assert changed(sources, tmp_path, before) == str(tmp_path / "train-2.jsonl")
    (tmp_path / "train-2.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    assert changed(sources, tmp_path, before) == str(tmp_path / "train-2.jsonl")
    assert changed([Dataset(type="sampled")], tmp_path, {}) is None


def test_texts_in_many_batches_are_all_read(tmp_path: Path, books: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnge_compress.data.reading.BATCH_CHARACTERS", 30)
    assert texts(numbered(tmp_path, books, 7), books) == [f"This is row {i}.<|endoftext|>" for i in range(7)]


def test_a_text_that_ends_already_gets_no_second_end(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "Yes.<|endoftext|>"}])
    assert texts(read(file, books), books) == ["Yes.<|endoftext|>"]


# --- prompt and completion


def test_only_completions_and_their_end_are_learned(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": "Who are you?", "completion": " A friend."}])
    rows = read(file, books, type="prompt_completion", packing=True)
    assert texts(rows, books) == ["Who are you? A friend.<|endoftext|>"]
    assert learned(rows, books) == [" A friend.<|endoftext|>"]


@pytest.mark.parametrize(
    ("prompt", "completion"), [("The ans", "wer is yes"), ("The answer is ", "yes"), ("Go\n", "\nhome"), ("a", "b")]
)
def test_no_token_spans_prompt_and_completion(tmp_path: Path, books: Any, prompt: str, completion: str) -> None:
    rows = read(
        jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "completion": completion}]), books, type="prompt_completion"
    )
    ids = rows.examples[0]["input_ids"].tolist()
    start = books(prompt)["input_ids"]
    assert ids[: len(start)] == start, "the model sees the prompt as it will be tokenised when it answers"
    assert learned(rows, books) == [completion + "<|endoftext|>"]


@pytest.mark.parametrize(("prompt", "completion"), [("the answer is", " yes"), ("the answer is ", "yes"), ("n", "o")])
def test_a_tokenizers_own_space_stays_out_of_completions(
    tmp_path: Path, spaced: Any, prompt: str, completion: str
) -> None:
    rows = read(
        jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "completion": completion}]), spaced, type="prompt_completion"
    )
    assert texts(rows, spaced) == [f"<s> {prompt}{completion}</s>"]
    assert int(rows.examples[0]["labels"][0]) == -100


def test_a_completion_that_is_cut_off_entirely_is_skipped_and_counted(tmp_path: Path, books: Any) -> None:
    file = jsonl(
        tmp_path / "a.jsonl",
        [
            {"prompt": "Yes. " * 30, "completion": "No."},
            {"prompt": "Yes.", "completion": " No." * 30},
            {"prompt": "", "completion": "Yes."},
            {"prompt": "Yes.", "completion": ""},
        ],
    )
    rows = read(file, books, type="prompt_completion", max_length=12)
    assert {k: rows.counts[k] for k in ("read", "empty", "cut", "overlong", "rows")} == {
        "read": 4,
        "empty": 1,
        "cut": 1,
        "overlong": 1,
        "rows": 2,
    }


def test_a_file_of_which_nothing_can_be_learned_is_refused(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": "Yes. " * 30, "completion": "No."}])
    with pytest.raises(DataError, match="nothing to learn: of 1 rows 0 are empty, and 1 have nothing .* 12 tokens"):
        read(file, books, type="prompt_completion", max_length=12)


# --- messages


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "marked"])
def test_only_the_assistants_turns_and_their_ends_are_learned(
    tmp_path: Path, chatty: Callable[[str], Any], template: str
) -> None:
    tokenizer = chatty(template)
    rows = read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]), tokenizer, type="messages", max_length=256)
    assert texts(rows, tokenizer) == [tokenizer.apply_chat_template(TALK, tokenize=False)]
    turns = [turn.strip() for turn in learned(rows, tokenizer)[0].split("<|end|>")]
    assert turns == ["A friend.", "Gladly, thank you.", ""]


def test_a_turn_that_is_rendered_otherwise_later_gets_a_row_of_its_own(
    tmp_path: Path, chatty: Callable[[str], Any]
) -> None:
    tokenizer = chatty(FORGETFUL)
    rows = read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]), tokenizer, type="messages", max_length=256)
    assert [turn.strip() for turn in learned(rows, tokenizer)] == [
        "<think>A friend.<|end|>",
        "<think>Gladly, thank you.<|end|>",
    ]
    assert "<think>A friend" not in texts(rows, tokenizer)[1] and "A friend" in texts(rows, tokenizer)[1]
    assert (rows.counts["read"], rows.counts["rows"]) == (1, 2)


def test_a_template_that_turns_a_prompt_into_something_else_is_refused(
    tmp_path: Path, chatty: Callable[[str], Any]
) -> None:
    tokenizer = chatty("{{ messages | length }}" + CHATML)
    with pytest.raises(DataError, match=r"a.jsonl', line 1, message 2: .* doesn't continue its prompt .* generation"):
        read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]), tokenizer, type="messages")


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    tokenizer = chatty("{{ raise_exception('Roles must alternate') }}")
    with pytest.raises(DataError, match=r"a.jsonl', line 1: the chat template refuses this row: Roles must alternate"):
        read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]), tokenizer, type="messages")


def test_nulls_that_a_columnar_file_adds_to_messages_are_left_out(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    tokenizer = chatty(
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% endfor %}"
    )
    calls = [{"name": "add", "x": 1, "y": None}, {"name": "stop", "x": None, "y": 2}]
    messages = [{**TALK[0], "tool_calls": None}, {"role": "assistant", "content": " So: ", "tool_calls": calls}]
    datasets.Dataset.from_list([{"messages": messages}]).to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", tokenizer, type="messages", max_length=256)
    assert learned(rows, tokenizer) == [' So: {"name": "add", "x": 1}{"name": "stop", "y": 2}']


def test_messages_need_a_chat_template(tmp_path: Path, books: Any) -> None:
    with pytest.raises(DataError, match="no chat template"):
        read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]), books, type="messages")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("hello", "holds text, not a list of messages"),
        (["hello"], "message 1 is text, not an object"),
        ([{"from": "human", "value": "hi"}], r"message 1 has no 'role' \(it has: from, value\)"),
        ([{"role": "asistant", "content": "hi"}], "unknown role 'asistant'; did you mean 'assistant'"),
        ([{"role": "user", "content": "hi"}], "no assistant turn"),
        ([{"role": "assistant", "content": None}], "message 1 has no content"),
        (
            [{"role": "assistant", "content": [{"type": "image"}]}],
            "part 1 of its content is of type .image., and only text is learned",
        ),
    ],
)
def test_messages_that_are_none_are_refused_by_row(
    tmp_path: Path, chatty: Callable[[str], Any], messages: Any, complaint: str
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": messages}])
    with pytest.raises(DataError, match=f"a.jsonl', line 2: column 'messages'.*{complaint}") as caught:
        read(file, chatty(CHATML), type="messages")
    with pytest.raises(DataError) as early:
        check_sources([Dataset(path=str(file), type="messages")], tmp_path)
    assert str(early.value) == str(caught.value)


# --- sampled


def test_rows_that_the_model_wrote_are_packed_as_they_are(books: Any) -> None:
    asked = []

    def write(tokens: int) -> list[list[int]]:
        asked.append(tokens)
        return [[0, 5, 6, 7], [0, 8, 9, 10]]

    source = Dataset(type="sampled", tokens=2048)
    rows = read_rows([source], books, max_length=4, packing=True, folder=Path(), sampled=write)
    assert [row["input_ids"].tolist() for row in rows.examples] == [[0, 5, 6, 7], [0, 8, 9, 10]]
    assert asked == [2048] and rows.counts["learned_tokens"] == 6


def test_without_a_model_there_is_no_sampled_text(books: Any) -> None:
    with pytest.raises(DataError, match="needs a model that writes"):
        read_rows([Dataset(type="sampled")], books, max_length=4, packing=True, folder=Path())


def test_sampling_twice_is_refused() -> None:
    with pytest.raises(DataError, match="given twice"):
        check_sources([Dataset(type="sampled"), Dataset(type="sampled", tokens=4096)], Path())


# --- formats


def written(file: Path, rows: list[Mapping[str, str]]) -> Path:
    if file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=1))
    elif file.suffix == ".jsonl":
        jsonl(file, rows)
    elif file.suffix == ".parquet":
        datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(file)
    else:
        with file.open("w", newline="") as out:
            table = csv.DictWriter(out, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".csv"])
def test_every_format_gives_the_same_rows_whatever_the_text_looks_like(tmp_path: Path, books: Any, suffix: str) -> None:
    """A reader that guesses types takes these for dates, numbers, nothing and a table of two lines."""
    said = ["2020-01-01", "007", "NA", 'one, "two"\nthree', "1e3", "true", "null"]
    file = written(tmp_path / f"a{suffix}", [{"id": str(i), "text": t} for i, t in enumerate(said)])
    check_sources([Dataset(path=file.name)], tmp_path)
    assert texts(read(file, books), books) == [t + "<|endoftext|>" for t in said]


def test_a_csv_cell_may_hold_a_book(tmp_path: Path, books: Any) -> None:
    book = "It was dark. " * 12_000  # longer than what Python's csv reader takes by default
    rows = read(written(tmp_path / "a.csv", [{"text": book}]), books, packing=True)
    assert "".join(texts(rows, books)) == book + "<|endoftext|>"


def test_columns_of_other_types_dont_matter(tmp_path: Path, books: Any) -> None:
    rows = [{"text": "Yes.", "id": 1}, {"text": "No.", "id": "x", "more": {"a": [1]}}, {"id": None, "text": "So."}]
    assert read(jsonl(tmp_path / "a.jsonl", rows), books).counts["rows"] == 3


def test_lines_of_a_json_file_are_read_like_jsonl_and_blank_lines_are_nothing(tmp_path: Path, books: Any) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"text": "Yes."}\n\n{"text": "No."}\n', encoding="utf-8")
    rows = read(tmp_path / "a.json", books)
    assert texts(rows, books) == ["Yes.<|endoftext|>", "No.<|endoftext|>"] and rows.counts["read"] == 2


def test_columns_may_have_other_names(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"question": "Who?", "answer": " I.", "prompt": "no"}])
    columns = {"prompt": "question", "completion": "answer"}
    rows = read(file, books, type="prompt_completion", columns=columns)
    assert texts(rows, books) == ["Who? I.<|endoftext|>"]


def test_max_rows_counts_rows_over_all_files_of_a_source(tmp_path: Path, books: Any) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}1"}}\n\n{{"text": "{name}2"}}\n')
    rows = read(tmp_path, books, max_rows=3)
    assert texts(rows, books) == [f"{t}<|endoftext|>" for t in ("a1", "a2", "b1")] and rows.counts["read"] == 3


def test_files_beyond_max_rows_leave_no_empty_text_behind(tmp_path: Path, books: Any) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("Yes.\nNo.\n")
    assert texts(read(tmp_path, books, packing=True, max_rows=2), books) == ["Yes.\nNo.\n<|endoftext|>"]


@pytest.mark.parametrize("part", [{"max_rows": 5}, {"split": "train[:50%]"}])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".parquet"])
def test_the_plan_guesses_the_tokens_of_a_part_of_any_file(tmp_path: Path, suffix: str, part: dict[str, Any]) -> None:
    line, file = "A line of forty letters, or of about that.", tmp_path / f"a{suffix}"
    if suffix == ".txt":
        file.write_text(f"{line}\n" * 10)
    else:
        written(file, [{"text": line}] * 10)
    whole, half = (about_tokens(Dataset(path=str(file), **told), None) for told in ({}, part))
    assert whole is not None and half == whole // 2


def test_a_slice_of_a_split_takes_its_share(tmp_path: Path, books: Any) -> None:
    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(5)])
    assert texts(read(tmp_path, books, split="train[40%:60%]"), books) == ["a4<|endoftext|>", "b0<|endoftext|>"]


def test_a_folder_is_divided_into_splits_by_name(tmp_path: Path, books: Any) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "sub/valid"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    (tmp_path / "README.txt").write_text("not a row")
    (tmp_path / ".hidden.jsonl").write_text("not a row")
    check_sources([Dataset(path=".", split="validation")], tmp_path)
    assert [t[:11] for t in texts(read(tmp_path, books), books)] == ["train-00000", "train-00001"]
    assert texts(read(tmp_path, books, split="validation"), books) == ["sub/valid<|endoftext|>"]
    assert texts(read(tmp_path, books, data_files="sub/*.jsonl"), books) == ["sub/valid<|endoftext|>"]


def test_a_name_full_of_wildcards_is_only_a_name(tmp_path: Path, books: Any) -> None:
    folder = tmp_path / "we[i]rd"
    jsonl(folder / "data[1]*?.jsonl", [{"text": "Yes."}])
    jsonl(folder / "data1x.jsonl", [{"text": "No."}])
    assert texts(read(folder / "data[1]*?.jsonl", books), books) == ["Yes.<|endoftext|>"]


def test_relative_paths_are_looked_for_beside_the_recipe(tmp_path: Path, books: Any) -> None:
    jsonl(tmp_path / "data" / "a.jsonl", [{"text": "Yes."}])
    rows = read_rows([Dataset(path="data/a.jsonl")], books, max_length=8, packing=False, folder=tmp_path)
    assert rows.counts["rows"] == 1


def test_reading_writes_nothing_beside_the_data(tmp_path: Path, books: Any) -> None:
    for suffix in (".jsonl", ".csv", ".parquet"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        file = written(folder / f"a{suffix}", [{"text": "Yes."}])
        before = file.stat().st_mtime_ns
        read(folder, books)
        assert [p.name for p in folder.rglob("*")] == [file.name] and file.stat().st_mtime_ns == before


def test_a_file_that_changed_is_read_anew(tmp_path: Path, books: Any) -> None:
    file = tmp_path / "a.jsonl"
    for word in ("Yes.", "No!!"):
        assert texts(read(jsonl(file, [{"text": word}]), books), books) == [f"{word}<|endoftext|>"]


def test_the_progress_bars_of_datasets_are_left_as_they_were(tmp_path: Path, books: Any, capfd: Any) -> None:
    datasets.enable_progress_bars()
    read(jsonl(tmp_path / "a.jsonl", [{"text": "Yes."}]), books)
    assert datasets.is_progress_bar_enabled() and "Generating" not in capfd.readouterr().err


# --- errors


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": "b"\n',
            r"a.jsonl', line 3: not JSON \(Expecting ',' delimiter at column",
        ),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a.jsonl', line 2: a row must be an object .* this is \[1\]"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 7}\n', "a.jsonl', line 2: column 'text' holds a number, not text"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            r"line 2: no column 'text' .* did you mean 'txt'\? \(there are: txt",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "a.jsonl', line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "line 1: column 'text' holds half a character"),
        ("a.jsonl", b"", "a.jsonl' is empty"),
        ("a.txt", b" \n\n", "a.txt' is empty"),
        ("a.txt", b"one\ncaf\xe9\n", "a.txt', line 2: not UTF-8"),
        ("a.json", b'[{"text": "a"},\n {"text" "b"}]', "a.json', line 2: not JSON"),
        ("a.json", b"[]", "a.json' is empty"),
        ("a.json", b'[{"text": "a"}, 7]', "a.json', row 2: a row must be an object"),
        ("a.csv", b"", "a.csv' is empty"),
        ("a.csv", b"text,id\n", "a.csv' is empty, but for its column names"),
        ("a.csv", b"text,id\na,1\nb, c,2\n", r"a.csv', row 2 \(line 3\): 3 values under 2 column names"),
        ("a.csv", b"text,id\na\n", r"a.csv', row 1 \(line 2\): 1 values under 2"),
        ("a.csv", b'text,id\n"a,1\n', "a.csv', line 2: not CSV"),
        ("a.csv", b"text,id\ncaf\xe9,1\n", "a.csv', line 2: not UTF-8"),
        ("a.csv", b"body,id\na,1\n", r"a.csv', row 1 \(line 2\) has body, id; rows need text, or .*columns"),
        ("a.parquet", b"PAR1 no", "a.parquet' is no readable .parquet file"),
        ("a.xlsx", b"x", "a.xlsx' is none of .jsonl, .json"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_line(
    tmp_path: Path, books: Any, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        read(tmp_path / name, books)
    assert "\n" not in str(caught.value)
    if name.endswith((".jsonl", ".csv", ".xlsx")):  # what the first rows show is seen before anything is loaded
        with pytest.raises(DataError, match=complaint):
            check_sources([Dataset(path=str(tmp_path / name))], tmp_path)


def test_a_bad_line_far_down_is_found_when_all_is_read(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "Yes."}] * 3000)
    with file.open("a") as out:
        out.write("{oops\n")
    check_sources([Dataset(path=str(file))], tmp_path)
    with pytest.raises(DataError, match="line 3001: not JSON"):
        read(file, books)


def test_a_wrong_row_keeps_its_line_in_a_slice(tmp_path: Path, books: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "Yes."}] * 7 + [{"text": 1}])
    with pytest.raises(DataError, match="line 8: column 'text'"):
        read(file, books, split="train[5:]")


def test_a_parquet_file_names_its_columns(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", [{"prompts": "a", "completion": "b"}])
    with pytest.raises(DataError, match=r"a.parquet': no column 'prompt' .* did you mean 'prompts' or 'completion'"):
        check_sources([Dataset(path="a.parquet", type="prompt_completion")], tmp_path)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ({"path": "tain.jsonl"}, r"tain.jsonl' doesn't exist; did you mean 'train.jsonl' or 'test.jsonl'\?"),
        ({"path": "bare/rows.csv"}, r"doesn't exist; nothing in '.*bare' can be read as rows; name another place"),
        ({"path": "./model/zzz"}, r"doesn't exist; known: mydata \("),
        ({"path": "no/such/file.csv"}, "there is no folder '.*no/such' either"),
        ({"path": "train.jsonl", "split": "test"}, "'train.jsonl' has no split 'test'; known: train"),
        ({"path": ".", "split": "tests"}, r"'.' has no split 'tests'; did you mean 'test'\?"),
        ({"path": "train.jsonl", "revision": "main"}, "'revision' means nothing"),
        ({"path": "train.jsonl", "data_files": "a"}, "'data_files' means nothing"),
        ({"path": ".", "data_files": "trian.jsonl"}, r"no 'trian.jsonl'; did you mean .*'train.jsonl'"),
        ({"path": "mixed"}, "mixes .csv and .jsonl files"),
        ({"path": "loose"}, "'train.jsonl' is named after a split and 'more.jsonl' isn't"),
        ({"path": "bare"}, "holds no file of a kind that is read"),
        ({"path": "train.jsonl", "type": "messages"}, "no column 'messages'"),
    ],
)
def test_a_source_that_cant_be_meant_is_refused_early(tmp_path: Path, source: dict[str, Any], complaint: str) -> None:
    for name in ("train", "test", "mixed/a", "loose/train", "loose/more"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": "Yes."}])
    (tmp_path / "mixed" / "b.csv").write_text("text\nYes.\n")
    (tmp_path / "bare").mkdir()
    (tmp_path / "model" / "mydata").mkdir(parents=True)
    (tmp_path / "model" / "weights.bin").touch()
    if source["path"] == ".":
        for folder in ("mixed", "loose"):
            for file in (tmp_path / folder).iterdir():
                file.unlink()
    with pytest.raises(DataError, match=complaint) as caught:
        check_sources([Dataset(**source)], tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train[:x", "train[9:]", "train[-500%:]"])
def test_a_slice_that_takes_nothing_is_refused(tmp_path: Path, books: Any, split: str) -> None:
    with pytest.raises(DataError, match="a.jsonl': split 'train"):
        read(jsonl(tmp_path / "a.jsonl", [{"text": "Yes."}] * 3), books, split=split)


def test_a_hub_id_out_of_reach_says_so_in_one_line(tmp_path: Path, books: Any) -> None:
    check_sources([Dataset(path="somebody/something")], tmp_path)
    with pytest.raises(DataError, match="'somebody/something' is no file or folder .* hub") as caught:
        read("somebody/something", books)
    assert "\n" not in str(caught.value)


def test_a_data_set_of_the_hub_is_read_by_its_name_and_revision(
    tmp_path: Path, books: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append((path, name, options))
        return datasets.Dataset.from_list([{"text": "Yes.", "id": 1}, {"text": "No.", "id": 2}])

    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read("some/thing", books, name="en", data_files=("a.csv",), revision="v2", split="test", max_rows=1)
    assert texts(rows, books) == ["Yes.<|endoftext|>"]
    assert asked == [("some/thing", "en", {"data_files": ["a.csv"], "split": "test", "revision": "v2"})]
    with pytest.raises(DataError, match=r"'some/thing': no column 'prompt' .*\(there are: id, text\)"):
        read("some/thing", books, type="prompt_completion")


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "Yes."}])
    monkeypatch.setitem(sys.modules, "datasets", None)
    check_sources([Dataset(path="a.jsonl")], tmp_path)  # files are read without it
    with pytest.raises(DataError, match=r"pip install 'dnge-compress\[jobs\]'"):
        check_sources([Dataset(path="owner/set")], tmp_path)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BOOKWORM)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        read(jsonl(tmp_path / "a.jsonl", [{"text": "Yes."}]), tokenizer)


# --- rows


def numbered(tmp_path: Path, tokenizer: Any, count: int) -> Rows:
    return read(jsonl(tmp_path / "n.jsonl", [{"text": f"This is row {i}."} for i in range(count)]), tokenizer)


def test_splitting_divides_the_rows_and_depends_on_the_seed_alone(tmp_path: Path, books: Any) -> None:
    rows = numbered(tmp_path, books, 40)
    train, test = split_rows(rows, 0.2, seed=1)
    assert (train.counts["rows"], test.counts["rows"]) == (32, 8)
    assert sorted(texts(train, books) + texts(test, books)) == sorted(texts(rows, books))
    assert train.counts["tokens"] + test.counts["tokens"] == rows.counts["tokens"]
    assert texts(split_rows(rows, 0.2, seed=1)[1], books) == texts(test, books)
    assert texts(split_rows(rows, 0.2, seed=2)[1], books) != texts(test, books)


def test_what_was_cut_or_skipped_is_counted_with_the_rows_to_train_on(tmp_path: Path, books: Any) -> None:
    lines = [{"text": text} for text in ("", *(["far too long a line " * 20] * 5), *("x" * 5))]
    rows = read(jsonl(tmp_path / "n.jsonl", lines), books, max_length=16, packing=False)
    train, test = split_rows(rows, 0.2, seed=1)
    told = {"read": 11, "empty": 1, "cut": 5}
    assert {key: rows.counts[key] for key in told} == {key: train.counts[key] for key in told} == told
    assert train.counts["rows"] == 8 and "cut" not in test.counts


def test_each_side_of_a_split_holds_a_row(tmp_path: Path, books: Any) -> None:
    train, test = split_rows(numbered(tmp_path, books, 2), 0.01, seed=0)
    assert train.counts["rows"] == test.counts["rows"] == 1
    with pytest.raises(DataError, match="0.01 can't be held out of 1 row;"):
        split_rows(numbered(tmp_path, books, 1), 0.01, seed=0)
    with pytest.raises(DataError, match="0.9 can't be held out of 2 rows;"):
        split_rows(numbered(tmp_path, books, 2), 0.9, seed=0)


def talk(number: int, turn: str, **more: Any) -> dict[str, Any]:
    """A conversation that says which it is."""
    said = [{"role": "user", "content": turn}, {"role": "assistant", "content": f"Answer {number}."}]
    return {"messages": said, **more}


def sides(rows: Rows, tokenizer: Any, fraction: float, seed: int) -> tuple[set[int], set[int]]:
    """Numbers of the conversations that are trained on, and of those held out."""
    train, test = (texts(part, tokenizer) for part in split_rows(rows, fraction, seed))
    first, second = (
        {int(number) for text in part for number in re.findall(r"Answer (\d+)", text)} for part in (train, test)
    )
    return first, second


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_conversation_stand_on_one_side_of_a_split(
    tmp_path: Path, chatty: Callable[[str], Any], seed: int
) -> None:
    tokenizer = chatty(CHATML)
    # 0–3 share an id, 3–5 a first turn, and so 0–5 belong together; 6 and 7 share a turn; the others are alone
    rows = [talk(i, f"Question {i}?", id="a") for i in range(3)] + [talk(3, "The same?", id="a")]
    rows += [talk(i, "The same?", id=i) for i in (4, 5)] + [talk(i, "Hello!") for i in (6, 7)]
    rows += [talk(i, f"Question {i}?", id=i) for i in range(8, 40)]
    found = read(jsonl(tmp_path / "a.jsonl", rows), tokenizer)
    train, test = sides(found, tokenizer, 0.25, seed)
    assert not train & test and train | test == set(range(40)) and len(test) == 10
    for together in (range(6), (6, 7)):
        assert set(together) <= train or set(together) <= test
    notes = split_rows(found, 0.25, seed)[0].notes
    assert notes[-1].startswith("8 of 40 rows share their conversation (id, or first turn) with others")


def test_turns_that_have_rows_of_their_own_stand_together(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    tokenizer = chatty(FORGETFUL)
    rows = [{"messages": [{"role": "user", "content": f"Question {i}?"}, *TALK[1:]]} for i in range(12)]
    found = read(jsonl(tmp_path / "a.jsonl", rows), tokenizer)
    assert len(found.examples) == 24  # two turns each
    for seed in range(5):
        held_out = texts(split_rows(found, 0.25, seed)[1], tokenizer)
        asked = [re.findall(r"Question (\d+)", text)[0] for text in held_out]
        assert len(asked) == 6 and all(asked.count(number) == 2 for number in asked)


def test_an_id_may_have_another_name_or_none(tmp_path: Path, books: Any) -> None:
    rows = [{"text": f"This is row {i}.", "talk": i // 2, "id": "same"} for i in range(20)]
    file = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r'all 20 rows belong to one conversation .* columns: \{id: ""\} where'):
        split_rows(read(file, books), 0.2, seed=0)
    for seed in range(3):
        held_out = texts(split_rows(read(file, books, columns={"id": "talk"}), 0.2, seed)[1], books)
        numbers = sorted(int(text.partition("row ")[2].partition(".")[0]) for text in held_out)
        assert len(numbers) == 4 and numbers[::2] == [n - 1 for n in numbers[1::2]]
    assert len(split_rows(read(file, books, columns={"id": ""}), 0.2, seed=0)[1].examples) == 4


@pytest.mark.parametrize("missing", [None, "", " ", [], {}, math.nan])
def test_a_missing_id_ties_nothing_and_zero_is_an_id(missing: Any) -> None:
    source = Dataset(path="a.jsonl", type="text")
    assert signs_of({"id": missing}, source, "said") == ()
    one, other = (signs_of({"id": number}, source, "said") for number in (0, 1))
    assert one and other and one != other and one == signs_of({"id": 0}, source, "said otherwise")


def test_a_turn_that_most_begin_with_is_an_instruction_and_ties_nothing(tmp_path: Path, books: Any) -> None:
    rows = [{"prompt": "Write a line.", "completion": f" Line {i}."} for i in range(30)]
    found = split_rows(read(jsonl(tmp_path / "a.jsonl", rows), books), 0.1, seed=0)[1]
    assert len(found.examples) == 3
    pairs = [{"prompt": f"Write line {i // 2}.", "completion": f" Line {i}."} for i in range(30)]
    train, test = split_rows(read(jsonl(tmp_path / "b.jsonl", pairs), books), 0.2, seed=0)
    prompts = [{text.partition(".")[0] for text in texts(part, books)} for part in (train, test)]
    assert not prompts[0] & prompts[1] and len(test.examples) == 6


def test_where_no_conversation_fits_into_the_share_the_smallest_is_held_out(
    tmp_path: Path, chatty: Callable[[str], Any]
) -> None:
    tokenizer = chatty(CHATML)
    rows = [talk(i, f"Question {i % 3 if i < 9 else 3}?") for i in range(11)]
    found = read(jsonl(tmp_path / "a.jsonl", rows), tokenizer)
    assert sides(found, tokenizer, 0.05, seed=0)[1] == {9, 10}


def test_a_batch_is_padded_at_the_right_to_its_longest_row(books: Any) -> None:
    rows = [
        {"input_ids": np.array([5, 6, 7]), "labels": np.array([-100, 6, 7])},
        {"input_ids": np.array([8]), "labels": np.array([-100])},
    ]
    batch = Collator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
    assert Collator.of(books).pad_token_id == books.eos_token_id


@torch.no_grad()
def test_a_batchs_loss_is_the_mean_over_the_tokens_that_are_learned(tmp_path: Path, books: Any) -> None:
    """The labels mean to the model what we say they do: its own loss is that of the completions alone."""
    file = jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": "It was a", "completion": " dark night."}, {"prompt": "She said that she", "completion": " knew."}],
    )
    rows = read(file, books, type="prompt_completion")
    model = AutoModelForCausalLM.from_pretrained(BOOKWORM, dtype=torch.float32)
    loss = model(**Collator.of(books)([rows.examples[i] for i in range(2)])).loss
    total = 0.0
    for row in rows.examples:
        ids = torch.tensor(row["input_ids"])[None]
        log_p = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        total -= float(log_p[torch.tensor(row["labels"][1:]) != -100].sum())
    assert float(loss) == pytest.approx(total / rows.counts["learned_tokens"], rel=1e-5)


def test_reading_is_deterministic(tmp_path: Path, books: Any) -> None:
    first, second = (numbered(tmp_path, books, 9) for _ in range(2))
    assert np.array_equal(first.examples.ids, second.examples.ids) and first.counts == second.counts


def test_examples_are_a_sequence(tmp_path: Path, books: Any) -> None:
    examples = numbered(tmp_path, books, 3).examples
    assert len(list(examples)) == len(examples) == 3
    assert np.array_equal(examples[-1]["input_ids"], examples[2]["input_ids"])
    with pytest.raises(IndexError):
        examples[3]


def test_a_few_of_many_rows_are_spread_over_all(tmp_path: Path, books: Any) -> None:
    examples = numbered(tmp_path, books, 10).examples
    few = examples.spread(4)
    assert [few[i]["input_ids"].tolist() for i in range(4)] == [examples[i]["input_ids"].tolist() for i in (0, 2, 5, 7)]
    assert len(examples.spread(99)) == 10
