"""Tasks of lm-evaluation-harness, put to two models; those that need it are left out where it isn't installed."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from dnge_compress import compare, open_model
from dnge_compress.cli.main import main
from dnge_compress.core.errors import DataError
from dnge_compress.jobs.asked_tasks import Tasks
from dnge_compress.jobs.lm_tasks import TaskScore, _spoken, section, task_scores

BOOKWORM = Path(__file__).parents[1] / "examples" / "bookworm"
QUESTIONS = [("He opened the door and went into the", ["house", "of"], 0)] * 6
QUESTIONS += [("He opened the door and went into the", ["house", "of"], 1)] * 2  # whose answers are wrong


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task of eight questions, six of which any model of English answers."""
    rows = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    told = {
        "task": "doors", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "questions.jsonl")},
        "test_split": "train", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "doors.yaml").write_text(json.dumps(told))
    return tmp_path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("He opened the door and went into the house, and it was raining all the while. " * 20)
    return file


def test_tasks_of_ones_own_are_put_to_each_model(
    folder: Path, texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    turned: Any = AutoModelForCausalLM.from_pretrained(BOOKWORM, tie_word_embeddings=False)
    turned.lm_head.weight = nn.Parameter(-turned.get_input_embeddings().weight.detach())  # what was likely isn't
    turned.save_pretrained(folder / "turned")
    AutoTokenizer.from_pretrained(BOOKWORM).save_pretrained(folder / "turned")
    command = ["compare", str(BOOKWORM), str(folder / "turned"), "--data", str(texts), "--tasks", "doors", "--json"]
    assert main([*command, "--task-folder", str(folder)]) == 0
    found = {score["metric"]: score for score in json.loads(capsys.readouterr().out)["tasks"]}
    assert found["acc"]["task"] == "doors" and found["acc"]["values"] == [0.75, 0.25]
    error = math.sqrt(0.75 * 0.25 / (len(QUESTIONS) - 1))
    assert found["acc"]["errors"] == pytest.approx([error, error], rel=1e-3)
    assert main([*command, "--task-folder", str(folder), "--task-limit", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["values"] == [1.0, 0.0]


def test_models_and_draws_are_left_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    model = open_model(BOOKWORM).train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    task_scores([model], Tasks(("doors",), folder, 2))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


@pytest.mark.parametrize(("task", "told"), [("door", "did you mean 'doors'"), ("hellaswag", "can't be asked")])
def test_tasks_that_are_unknown_or_have_no_questions_are_refused(
    task: str, told: str, folder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=told):
        compare(BOOKWORM, BOOKWORM, data=[texts.read_text()], tasks=Tasks((task,), folder))


def test_without_the_harness_the_way_to_it_is_told(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("dnge_compress.cli.early.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'dnge-compress\[tasks\]'"):
        compare(BOOKWORM, BOOKWORM, data=[texts.read_text()], tasks=Tasks(("arc_easy",)))
    assert main(["compare", str(BOOKWORM), str(BOOKWORM), "--data", str(texts), "--tasks", "arc_easy"]) == 2
    assert "dnge-compress[tasks]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task-folder", "."], "--tasks NAMES"),
        (["--task-limit", "3"], "--tasks NAMES"),
        (["--tasks", "a", "--task-folder", "nowhere"], "'nowhere' is no folder"),
        (["--tasks", ","], "no name is given"),
    ],
)
def test_tasks_that_make_no_sense_are_refused_before_any_work(
    words: list[str], told: str, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dnge_compress.cli.early.find_spec", lambda name: object())
    assert main(["compare", str(BOOKWORM), str(BOOKWORM), "--data", str(texts), *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (((),), "write"),
        (("arc_easy",), "write"),
        ((("a",), Path("nowhere")), "no folder"),
        ((("a",), None, 0), "at least 1"),
    ],
)
def test_tasks_that_are_none_are_refused(given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Tasks(*given)


@pytest.mark.parametrize(("text", "told"), [(None, "holds no .yaml file"), ("task: [1", "mine.yaml' is no YAML")])
def test_folders_without_a_task_are_refused(text: str | None, told: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(DataError, match=told):
        Tasks(("mine",), tmp_path)


def test_tags_of_the_harness_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\nprocess_docs: !function utils.process\n")
    Tasks(("mine",), tmp_path)


def test_models_that_write_nothing_or_have_no_tokenizer_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnge_compress.jobs.lm_tasks._installed", lambda: None)
    for name, told in (("bert", "a BertModel is none"), ("llama", "there is no tokenizer to put tasks with")):
        with pytest.raises(DataError, match=told):
            task_scores([models.make(name)], Tasks(("arc_easy",)))


def test_what_the_harness_filters_by_is_told() -> None:
    assert [_spoken(key) for key in ("acc,none", "exact_match,strict-match")] == ["acc", "exact_match (strict-match)"]


def test_scores_stand_beside_each_other_with_their_errors() -> None:
    score = TaskScore(task="doors", metric="acc", values=(0.75, 0.5), errors=(0.1637, None))
    found: Any = section([score], ("base", "small"))
    (row,) = found.blocks[0].rows
    assert [cell.text for cell in row] == ["doors", "acc", "0.75", "0.5"]
    assert [cell.detail for cell in row] == ["", "", "± 0.16", ""]
