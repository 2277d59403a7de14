"""Text that a model writes: behind a prompt or as an answer, drawn or not, within its positions; and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dnge_compress import compress, load, open_model, save
from dnge_compress.cli.main import main
from dnge_compress.core.errors import DataError
from dnge_compress.tasks.writing import written

TEMPLATE = "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}{% if add_generation_prompt %}w3{% endif %}"


def spoken(folder: Path, name: str = "llama", template: str = "") -> Path:
    """A tiny model with a tokenizer of 61 words, which begins texts with <s>."""
    model: Any = make(name)
    if model.can_generate():
        model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(58))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template or None
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Without a chat template."""
    return open_model(spoken(tmp_path_factory.mktemp("models") / "plain"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With one."""
    return open_model(spoken(tmp_path_factory.mktemp("models") / "chatty", template=TEMPLATE))


def likeliest(model: Any, ids: list[int], count: int) -> list[int]:
    """What a plain loop finds."""
    found: list[int] = []
    while len(found) < count and found[-1:] != [2]:
        with torch.no_grad():
            found.append(int(model(torch.tensor([[*ids, *found]])).logits[0, -1].argmax()))
    return found


def test_the_likeliest_token_is_taken_each_time(plain: Any) -> None:
    found = written(plain, "w5 w6", tokens=6)
    wanted = likeliest(plain, [8, 9], 6)
    assert found.text.split() == [f"w{i - 3}" for i in wanted if i > 2] and found.tokens == len(wanted)
    assert (found.prompt, found.prompt_tokens, found.is_chat, found.room) == ("w5 w6", 2, False, 6)


def test_a_chat_template_is_used_where_there_is_one_unless_it_is_not_wanted(chatty: Any, plain: Any) -> None:
    asked = written(chatty, "w5", tokens=4)
    assert asked.is_chat and asked.prompt == "w1 w5 w2 w3" and asked.prompt_tokens == 4
    assert asked.text.split() == [f"w{i - 3}" for i in likeliest(chatty, [4, 8, 5, 6], 4) if i > 2]
    bare = written(chatty, "w5", is_chat=False, tokens=4)
    assert not bare.is_chat and bare.prompt == "w5"
    with pytest.raises(DataError, match="no chat template, so the prompt can't be a user's turn"):
        written(plain, "w5", is_chat=True, tokens=4)


def test_draws_follow_the_seed_and_leave_the_global_generator_alone(plain: Any) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    texts = [written(plain, "w5", tokens=12, temperature=2.0, seed=seed).text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(state, torch.random.get_rng_state()) and not plain.training


@pytest.mark.parametrize(
    "own", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}, {"return_dict_in_generate": True}]
)
def test_settings_of_the_models_own_that_ask_for_more_than_one_text_are_left(
    own: dict[str, Any], plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = written(plain, "w5 w6", tokens=6)
    for key, value in own.items():
        monkeypatch.setattr(plain.generation_config, key, value)
    assert written(plain, "w5 w6", tokens=6) == wanted


def test_an_end_of_its_own_ends_it(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    third = likeliest(plain, [8], 3)[-1]
    monkeypatch.setattr(plain.generation_config, "eos_token_id", third)
    found = written(plain, "w5", tokens=10)
    assert found.has_ended and found.tokens <= 3
    monkeypatch.setattr(plain.generation_config, "eos_token_id", None)  # then the tokenizer's
    assert written(plain, "w5", tokens=3).tokens == 3


def test_no_more_is_written_than_there_are_positions_for(tmp_path: Path) -> None:
    model: Any = open_model(spoken(tmp_path / "gpt2", "gpt2"))
    model.generation_config.eos_token_id = None
    positions = model.config.n_positions
    found = written(model, " ".join(["w5"] * (positions - 3)), tokens=10)
    assert found.room == 3 and found.tokens <= 3
    with pytest.raises(DataError, match=f"the model has positions for {positions}; shorten it"):
        written(model, " ".join(["w5"] * positions), tokens=10)


def test_a_prompt_that_cant_be_read_is_refused(plain: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        written(plain, "", tokens=3)
    small: Any = open_model(spoken(tmp_path / "small"))
    small.resize_token_embeddings(20)
    with pytest.raises(DataError, match="holds token 33 .'w30'., but the model has 20 rows"):
        written(small, "w30", tokens=3)


def test_a_model_that_only_load_reads_writes_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = spoken(tmp_path / "base")
    how: dict[str, Any] = {"tokens": 256, "length": 16, "scorer": "obs", "uneven": True, "allocation": "global"}
    small = compress(folder, 0.3, kinds="neuron", **how)
    assert small.dnge.plan.uneven
    save(small, tmp_path / "out")
    assert main(["generate", str(tmp_path / "out"), "w5 w6", "--max-new-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    wanted = likeliest(load(tmp_path / "out"), [8, 9], 5)
    assert out.split() == [f"w{i - 3}" for i in wanted if i > 2]
    assert "dnge: behind 2 tokens of bare text the model wrote" in err


def test_the_command_prints_text_or_json(chatty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", chatty.name_or_path, "w5", "--max-new-tokens", "4"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.strip() == written(chatty, "w5", tokens=4).text.strip() and "4 tokens of a conversation" in err
    assert main([*command, "--no-chat", "--temperature", "1.5", "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == written(chatty, "w5", is_chat=False, tokens=4, temperature=1.5, seed=3).to_dict()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("bert_mlm", ["w5"], "is a BertForMaskedLM, which writes no text; name a causal language model"),
        ("llama", ["w5", "--chat"], "the tokenizer has no chat template"),
        ("llama", ["w5", "--temperature", "-1"], "argument --temperature: -1 is no number of at least 0"),
        ("llama", ["w5", "--temperature", "nan"], "argument --temperature: nan is no number of at least 0"),
        ("llama", ["w5", "--temperature", "1e-30"], "temperature 1e-30 is too small to divide by; give 1e-06 at least"),
        ("llama", ["w5", "--seed", "-1"], "argument --seed: -1 is no number from 0 to 4294967295"),
        ("llama", ["w5", "--seed", str(1 << 64)], "argument --seed: 18446744073709551616 is no number from 0 to"),
        ("llama", ["w5", "--max-new-tokens", "0"], "argument --max-new-tokens: 0 is not a positive number"),
        ("llama", [], "arguments are required: PROMPT"),
    ],
)
def test_what_cant_be_written_is_one_line(
    name: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoken(tmp_path / name, name)
    capsys.readouterr()
    assert main(["generate", str(folder), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("dnge: error") == 1 and "Traceback" not in err


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("llama").save_pretrained(tmp_path / "llama")  # type: ignore[operator]
    assert main(["generate", str(tmp_path / "llama"), "w5"]) == 2
    assert "there is no tokenizer to write with" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_damaged_model_writes_nothing(temperature: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = spoken(tmp_path / "damaged")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    assert main(["generate", str(folder), "w4 w5", "--temperature", temperature]) == 2
    assert "'model.layers.1.mlp.up_proj.weight' holds NaN" in capsys.readouterr().err
