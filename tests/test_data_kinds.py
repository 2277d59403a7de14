"""Rows as people have them: told apart by their columns, turned into lessons, and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from test_job_data import CHATML, FORGETFUL, MARKED, TALK, chatty, jsonl, learned, read, spaced, texts
from transformers import AutoTokenizer

from dnge_compress.cli.main import main
from dnge_compress.core.errors import DataError
from dnge_compress.data.kinds import told
from dnge_compress.data.pieces import encode_whole
from dnge_compress.data.sources import settled, source_of
from dnge_compress.recipes.data_schema import Dataset

__all__ = ["chatty", "spaced"]  # fixtures
BOOKWORM = Path(__file__).resolve().parents[1] / "examples" / "bookworm"
SHARED = [{"from": "human", "value": "Who goes there?"}, {"from": "gpt", "value": "A friend."}]
ALPACA = {"instruction": "Add them.", "input": "1 and 2", "output": "3"}
TOOLS = CHATML + "{% if tools %}{{ tools | tojson }}{% endif %}"


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "id": 1}, "text"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"messages": TALK}, "messages"),
        ({"conversations": SHARED}, "sharegpt"),
        (ALPACA, "alpaca"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({**ALPACA, "text": "Below is an instruction …"}, "alpaca"),
        ({"messages": TALK, "prompt": "Who goes there?"}, "messages"),
    ],
)
def test_a_type_is_told_from_the_columns(row: dict[str, Any], kind: str) -> None:
    assert told(Dataset(path="x"), row, "row 1").type == kind
    assert told(Dataset(path="x", type="text"), row, "row 1").type == "text", "what the recipe says, stays"


def test_conversations_are_told_by_the_keys_of_their_messages_and_not_by_their_column() -> None:
    found = told(Dataset(path="x"), {"conversations": TALK}, "row 1")
    assert (found.type, found.column("messages")) == ("messages", "conversations")
    found = told(Dataset(path="x"), {"messages": SHARED}, "row 1")
    assert (found.type, found.column("conversations")) == ("sharegpt", "messages")


def test_columns_that_are_renamed_decide(tmp_path: Path) -> None:
    row = {**ALPACA, "body": "b"}
    assert told(Dataset(path="x", columns={"text": "body"}), row, "row 1").type == "text"
    asked = told(Dataset(path="x", columns={"prompt": "instruction", "completion": "output"}), row, "row 1")
    assert asked.type == "prompt_completion" and asked.column("prompt") == "instruction"


def test_what_was_told_is_said_with_what_it_could_be_else(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{**ALPACA, "text": "…"}])
    assert (
        settled(Dataset(path=str(file)), tmp_path)[1] == "alpaca (instruction, output, input; it would do as text, too)"
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"body": "x"},
            r"a.jsonl', line 1 has body; rows need text, or prompt and completion, or .*columns: {text: …}",
        ),
        ({"promt": "x", "completion": "y"}, "did you mean 'prompt'"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "those are preferences, which aren't learned here"),
    ],
)
def test_rows_of_no_kind_are_refused_with_the_way_out(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        settled(Dataset(path=str(jsonl(tmp_path / "a.jsonl", [row]))), tmp_path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_every_format_shows_its_first_row(tmp_path: Path, suffix: str, chatty: Callable[[str], Any]) -> None:
    file, rows = (
        tmp_path / f"a.{suffix}",
        [{**ALPACA, "n": 1}, {"instruction": "Say no.", "input": "", "output": "No."}],
    )
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    found = read(file, chatty(CHATML), max_length=256)
    assert texts(found, chatty(CHATML)) == [
        "<|user|>Add them.\n\n1 and 2<|end|>\n<|assistant|>3<|end|>\n",
        "<|user|>Say no.<|end|>\n<|assistant|>No.<|end|>\n",
    ]
    assert learned(found, chatty(CHATML)) == ["3<|end|>\n", "No.<|end|>\n"]
    assert found.notes == (f"'a.{suffix}' is read as alpaca (instruction, output, input): the output is learned",)


def test_alpaca_has_its_own_prompt_where_no_template_is(tmp_path: Path, spaced: Any) -> None:
    spaced.chat_template = None
    rows = read(jsonl(tmp_path / "a.jsonl", [ALPACA, {**ALPACA, "input": None}]), spaced, max_length=900)
    first, second = learned(rows, spaced)
    assert first == second == "<unk></s>", "3 isn't in the vocabulary"
    said = [spaced.decode(row["input_ids"]).replace("<unk>", "") for row in rows.examples]
    assert "paired" not in said[1] and len(said[1]) < len(said[0])


def test_sharegpt_is_the_same_conversation_in_other_words(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    tokenizer = chatty(CHATML)
    ours = read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK[:2]}]), tokenizer, max_length=256)
    theirs = read(jsonl(tmp_path / "b.jsonl", [{"conversations": SHARED}]), tokenizer, max_length=256)
    assert texts(ours, tokenizer) == texts(theirs, tokenizer) and learned(ours, tokenizer) == learned(theirs, tokenizer)
    told_to = read(
        jsonl(tmp_path / "c.jsonl", [{"system": "Be brief.", "conversations": SHARED}]), tokenizer, max_length=256
    )
    assert texts(told_to, tokenizer)[0] == "<|system|>Be brief.<|end|>\n" + texts(ours, tokenizer)[0]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([{"from": "martian", "value": "x"}], "message 1: nobody is called 'martian'"),
        ([{"from": "human"}], "message 1 has no value"),
        ([{"from": "human", "value": "x"}], "no assistant turn"),
        ([{"role": "user", "content": "x"}, *SHARED], "message 1 has no 'from'.*type 'messages' has those"),
        ([{"from": "function_call", "value": "no"}], "a function_call's value should be JSON"),
        ([{"from": ["human"], "value": "x"}], "message 1: from is a list, not text"),
    ],
)
def test_sharegpt_that_is_none_is_refused_by_row(
    tmp_path: Path, chatty: Callable[[str], Any], said: Any, words: str
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"conversations": said}])
    with pytest.raises(DataError, match=f"a.jsonl', line 1: column 'conversations'.*{words}"):
        read(file, chatty(CHATML), type="sharegpt")


def test_contents_in_parts_are_the_texts_in_them(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    tokenizer = chatty(CHATML)
    whole = read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]), tokenizer, max_length=256)
    halves = [
        {**m, "content": [{"type": "text", "text": m["content"][:3]}, {"type": None, "text": m["content"][3:]}]}
        for m in TALK
    ]
    parted = read(jsonl(tmp_path / "b.jsonl", [{"messages": halves}]), tokenizer, max_length=256)
    assert texts(parted, tokenizer) == texts(whole, tokenizer) and learned(parted, tokenizer) == learned(
        whole, tokenizer
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": ["user"], "content": "x"}, *TALK]}, "message 1: role is a list, not text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, *TALK]},
            "message 1: part 1 of its content is of type 'image_url', and only text is learned",
        ),
        ({"messages": [{"role": "user", "content": [{"text": 3}]}, *TALK]}, "part 1 of its content is a number"),
        ({"messages": [{"role": "user", "content": ["x"]}, *TALK]}, "part 1 of its content is text, not an object"),
        ({"messages": [{"role": "user", "content": []}, *TALK]}, "message 1 has no content"),
        (
            {"system": "Be brief.", "conversations": [{"from": "system", "value": "Be long."}, *SHARED]},
            "line 1 has a system text in its own column and another among its messages; give one",
        ),
    ],
)
def test_messages_that_are_no_conversation_are_refused(
    tmp_path: Path, chatty: Callable[[str], Any], row: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(jsonl(tmp_path / "a.jsonl", [row]), chatty(CHATML))


# --- what is learned


def marked_turns(key: str, *values: Any) -> list[dict[str, Any]]:
    """TALK, whose assistant turns hold a key."""
    given = iter(values)
    return [{**m, key: next(given)} if m["role"] == "assistant" else m for m in TALK]


@pytest.mark.parametrize(
    ("key", "no", "yes"), [("weight", 0, 1), ("train", False, True), ("training", False, True), ("loss", False, None)]
)
@pytest.mark.parametrize("template", [CHATML, MARKED, FORGETFUL], ids=["plain", "marked", "forgetful"])
def test_a_turn_that_says_so_is_not_learned(
    tmp_path: Path, chatty: Callable[[str], Any], template: str, key: str, no: Any, yes: Any
) -> None:
    tokenizer = chatty(template)
    rows = read(jsonl(tmp_path / "a.jsonl", [{"messages": marked_turns(key, no, yes)}]), tokenizer, max_length=256)
    assert [turn.replace("<think>", "").strip() for turn in learned(rows, tokenizer)] == ["Gladly, thank you.<|end|>"]
    assert "A friend." in texts(rows, tokenizer)[0], "it is still read"


def test_the_first_turn_alone_can_be_learned(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    for template in (CHATML, MARKED):
        rows = read(
            jsonl(tmp_path / "a.jsonl", [{"messages": marked_turns("weight", 1, 0)}]), chatty(template), max_length=256
        )
        assert learned(rows, chatty(template))[0].strip() == "A friend.<|end|>"


def test_a_row_whose_turns_are_all_unlearned_is_empty(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": marked_turns("train", False, False)}])
    rows = read(file, chatty(CHATML), max_length=256)
    assert (rows.counts["rows"], rows.counts["empty"]) == (1, 1)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (marked_turns("weight", 0.5, 1), r"message 2: 'weight' is 0.5; only 0, 1, true and false"),
        (marked_turns("train", "no", True), "message 2: 'train' is 'no'"),
        ([{**TALK[0], "train": True}, *TALK[1:]], "message 1: 'train' is true, but only assistant turns are learned"),
        ([TALK[0], {**TALK[1], "train": True, "weight": 0}], "message 2: 'weight' is 0 and 'train' is true; give one"),
    ],
)
def test_keys_that_say_no_clear_thing_are_refused(
    tmp_path: Path, chatty: Callable[[str], Any], messages: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(jsonl(tmp_path / "a.jsonl", [{"messages": messages}]), chatty(CHATML))


def test_keys_of_other_turns_that_say_no_are_no_news(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    tokenizer = chatty(CHATML + "{{ messages[0].train }}")
    rows = read(
        jsonl(tmp_path / "a.jsonl", [{"messages": [{**TALK[0], "train": False}, TALK[1]]}]), tokenizer, max_length=256
    )
    assert texts(rows, tokenizer) == ["<|user|>Who goes there?<|end|>\n<|assistant|>A friend.<|end|>\n"]


def test_marks_that_cant_be_shared_out_among_turns_are_refused(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    doubled = MARKED.replace(
        "{{ m.content }}<|end|>{% endgeneration", "{{ m.content }}{% endgeneration %}-{% generation %}!{% endgeneration"
    )
    file = jsonl(tmp_path / "a.jsonl", [{"messages": marked_turns("weight", 0, 1)}])
    with pytest.raises(
        DataError, match="line 1: some turns aren't to be learned, and the chat template marks 4 parts of 2"
    ):
        read(file, chatty(doubled), max_length=256)


# --- tools

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER])], ids=["list", "text"])
def test_tools_reach_the_template(tmp_path: Path, chatty: Callable[[str], Any], tools: Any) -> None:
    tokenizer = chatty("{{ tools | tojson }}" + CHATML)
    rows = read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK, "tools": tools}]), tokenizer, max_length=256)
    assert texts(rows, tokenizer)[0].startswith(json.dumps([WEATHER])) and "A friend." in learned(rows, tokenizer)[0]


def test_tools_that_the_template_has_no_place_for_are_refused_unless_left_out(
    tmp_path: Path, chatty: Callable[[str], Any]
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"messages": TALK, "tools": [WEATHER]}])
    with pytest.raises(DataError, match=r'line 1: the row gives tools, and the chat template .* columns: {tools: ""}'):
        read(file, chatty(CHATML))
    assert read(file, chatty(CHATML), columns={"tools": ""}, max_length=256).counts["rows"] == 1
    for none in ([], None, ""):
        assert (
            read(jsonl(file, [{"messages": TALK, "tools": none}]), chatty(CHATML), max_length=256).counts["rows"] == 1
        )


@pytest.mark.parametrize(
    ("tools", "words"), [("no", "should hold a list or JSON"), ({"a": 1}, "holds an object, not a list")]
)
def test_tools_that_are_none_are_refused(tmp_path: Path, chatty: Callable[[str], Any], tools: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"line 1: column 'tools' .*{words}"):
        read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK, "tools": tools}]), chatty(TOOLS))


def test_a_column_that_is_needed_cant_be_left_out() -> None:
    with pytest.raises(ValueError, match="'messages' is needed; only tools, id, system, input may be left out"):
        Dataset(path="x", type="messages", columns={"messages": ""})


# --- one start token


def starts(rows: Iterable[Any], tokenizer: Any) -> list[int]:
    """How many start tokens stand in each row."""
    return [int((row["input_ids"] == tokenizer.bos_token_id).sum()) for row in rows]


def test_no_row_begins_twice(tmp_path: Path, spaced: Any) -> None:
    """The tokenizer adds a start token, the template writes one, and people's texts bring theirs along."""
    spaced.chat_template = "{{ bos_token }}" + CHATML
    marked = "{{ bos_token }}" + MARKED
    for template in (spaced.chat_template, marked):
        spaced.chat_template = template
        rows = read(jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]), spaced, max_length=256)
        assert starts(rows.examples, spaced) == [1]
    for row in ({"text": "<s>yes or no"}, {"prompt": "<s>yes or", "completion": " no"}):
        for packing in (False, True):
            rows = read(jsonl(tmp_path / "a.jsonl", [row]), spaced, packing=packing)
            assert starts(rows.examples, spaced) == [1]
    (tmp_path / "a.txt").write_text("<s>yes\nno\n")
    assert starts(read(tmp_path / "a.txt", spaced, packing=True).examples, spaced) == [1]
    spaced.chat_template = None


def test_a_text_to_calibrate_on_begins_once(spaced: Any) -> None:
    assert encode_whole("<s>yes or no", spaced, 99)[0].count(spaced.bos_token_id) == 1
    ids, is_cut = encode_whole("<s>yes or no", spaced, 3)
    assert len(ids) == 3 and is_cut and ids.count(spaced.bos_token_id) == 1


# --- data show and --data


def test_rows_are_shown_with_marks_around_what_is_learned(tmp_path: Path, capsys: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"messages": marked_turns("weight", 0, 1)}, {"messages": []}])
    assert main(["data", "show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "assistant: ⟦Gladly, thank you.⟧" in shown and "assistant: A friend.\n" in shown
    words = " ".join(shown.split())  # lines break where paths are long
    assert "read as messages (messages)" in words and "nothing to learn" in words


def test_a_models_tokenizer_shows_what_it_writes(tmp_path: Path, capsys: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": "Who are you?", "completion": " A friend."}])
    assert main(["data", "show", str(file), "--model", str(BOOKWORM), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert [p["text"] for p in row["pieces"]] == ["Who are you?", " A friend.<|endoftext|>"]
    assert [p["learned"] for p in row["pieces"]] == [False, True]
    assert found["type"] == "prompt_completion" and row["tokens"] > row["learned_tokens"] > 2


def test_so_many_rows_are_shown(tmp_path: Path, capsys: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(9)])
    assert main(["data", "show", str(file), "--rows", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


def test_what_steers_a_terminal_is_not_shown_to_it(tmp_path: Path, capsys: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "a\x1b[31mb\nc"}])
    assert main(["data", "show", str(file)]) == 0
    assert "⟦a�[31mb\n" in (shown := capsys.readouterr().out) and "\x1b" not in shown


def test_data_is_named_as_a_recipe_names_it(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"body": "x", "text": "y"}])
    assert source_of(f"{{path: {file}, columns: {{text: body}}}}").column("text") == "body"
    assert source_of(str(tmp_path)).path == str(tmp_path), "a folder"
    with pytest.raises(DataError, match="type 'sampled' has no rows of its own"):
        source_of("{type: sampled}")
    with pytest.raises(ValueError, match="--data: unknown key 'colums'"):
        source_of(f"{{path: {file}, colums: {{}}}}")


ASKED, SAID = TALK[:3], TALK[3:]


def turns(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation as TRL's prompt and completion."""
    return {"prompt": ASKED, "completion": SAID, **row}


@pytest.mark.parametrize("template", [CHATML, MARKED, FORGETFUL])
def test_of_a_prompt_and_completion_in_messages_only_the_completion_is_learned(
    tmp_path: Path, chatty: Callable[[str], Any], template: str
) -> None:
    tokenizer = chatty(template)
    rows = read(jsonl(tmp_path / "a.jsonl", [turns({})]), tokenizer, max_length=256)
    said = learned(rows, tokenizer)
    assert len(said) == 1 and "Gladly, thank you.<|end|>" in said[0] and "A friend" not in said[0]
    whole = texts(rows, tokenizer)[0]
    assert "A friend." in whole and "Who goes there?" in whole and rows.notes[0].endswith("the completion is learned")


def test_messages_in_a_columnar_prompt_and_completion_are_the_same_conversation(
    tmp_path: Path, chatty: Callable[[str], Any]
) -> None:
    tokenizer = chatty("{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML)
    tools = [{"type": "function", "function": {"name": "bell"}}]
    row = turns({"tools": json.dumps(tools), "id": 3})
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")
    rows, same = (
        read(file, tokenizer, max_length=256) for file in (tmp_path / "a.parquet", jsonl(tmp_path / "a.jsonl", [row]))
    )
    assert texts(rows, tokenizer) == texts(same, tokenizer) and learned(rows, tokenizer) == learned(same, tokenizer)
    assert "bell" in texts(rows, tokenizer)[0]


def test_a_conversation_that_the_assistant_begins_says_so(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"messages": TALK[1:]}])
    with pytest.raises(DataError, match="line 1: the conversation begins with the assistant, .*; take it out, or"):
        read(file, chatty(CHATML), max_length=256)
    file = jsonl(tmp_path / "b.jsonl", [{"messages": [{**TALK[1], "train": False}, *TALK[2:]]}])
    assert learned(read(file, chatty(CHATML), max_length=256), chatty(CHATML)) == ["Gladly, thank you.<|end|>\n"]


def test_a_completion_of_several_turns_keeps_to_its_keys(tmp_path: Path, chatty: Callable[[str], Any]) -> None:
    tokenizer = chatty(CHATML)
    completion = [{**TALK[1], "weight": 0}, *TALK[2:]]
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": TALK[:1], "completion": completion}])
    rows = read(file, tokenizer, max_length=256)
    assert learned(rows, tokenizer) == ["Gladly, thank you.<|end|>\n"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"completion": "Gladly."}, "line 1: column 'completion' holds text, not a list of messages"),
        ({"prompt": "Who goes there?"}, "line 1: column 'prompt' holds text, not a list of messages"),
        ({"completion": TALK[2:3]}, "column 'completion' holds no assistant turn"),
        (
            {"prompt": [{**TALK[1], "train": True}]},
            "column 'prompt', message 1: 'train' is true, but no prompt is lear",
        ),
        ({"prompt": [{"role": "user"}]}, "column 'prompt', message 1 has no content"),
        ({"prompt": 3}, "column 'prompt' holds a number, not text"),
    ],
)
def test_prompts_and_completions_that_dont_go_together_are_refused(
    tmp_path: Path, chatty: Callable[[str], Any], row: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(jsonl(tmp_path / "a.jsonl", [turns(row)]), chatty(CHATML))


def test_messages_in_a_prompt_need_a_chat_template_and_are_shown(tmp_path: Path, capsys: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", [turns({})])
    assert main(["data", "show", str(file)]) == 0
    assert "assistant: ⟦Gladly, thank you.⟧" in capsys.readouterr().out
    with pytest.raises(DataError, match="no chat template, which conversations need"):
        read(file, AutoTokenizer.from_pretrained(BOOKWORM))
