"""Jobs that first let tokens go which their rows never use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_jobs import model, recipe, rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from dnge_compress.core.errors import RecipeError
from dnge_compress.data.rows import Examples
from dnge_compress.jobs import running
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.outline import planned
from dnge_compress.jobs.running import run

__all__ = ["model", "rows"]  # fixtures
TOLD: dict[str, Any] = {"vocabulary": {"token_multiple": 8}, "distill": {"weight": 0.5}, "train": {"max_steps": 2}}


@pytest.fixture(scope="module")
def finished(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "fewer"
    assert run(job_of(recipe(model, rows, out, **TOLD))) is not None
    return out


def test_the_result_reads_the_rows_as_before_with_fewer_tokens(model: Path, rows: Path, finished: Path) -> None:
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (model, finished / "model"))
    small = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert len(after) == small.config.vocab_size == len(small.get_input_embeddings().weight) < len(before) == 4096
    assert small.config.vocab_size % 8 == 0
    for line in rows.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        assert after.tokenize(text) == before.tokenize(text)


def test_rows_and_teacher_know_the_fewer_tokens(finished: Path) -> None:
    tokens = json.loads((finished / "vocabulary" / "config.json").read_text())["vocab_size"]
    assert int(Examples.load(JobFolder(finished).train_rows).ids.max()) < tokens
    report = json.loads((finished / "report.json").read_text())
    assert report["stages"][:3] == ["vocabulary", "data", "prune"]
    assert report["notes"][0].startswith(f"vocabulary: {tokens:,} of 4,096 tokens stay (")
    original, pruned, trained = report["milestones"]
    weights = load_file(finished / "vocabulary" / "model.safetensors")
    assert original["params"] == sum(w.numel() for w in weights.values()) > pruned["params"] == trained["params"]


def test_tokens_that_were_taken_away_are_made_again_where_they_are_needed(
    model: Path, rows: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fewer"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "vocabulary")
    shutil.rmtree(out / "model")
    assert run(job_of(recipe(model, rows, out, **TOLD))) is not None
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, finished))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


@pytest.mark.parametrize("end", ["data", "train"])
def test_all_that_knows_the_old_tokens_starts_over_where_other_rows_use_others(
    end: str, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:20]), encoding="utf-8")
    job = job_of(recipe(model, file, out, **TOLD, calibrate_on="synthetic"))
    real = running.timed

    def stopped(stage: Any, work: Any) -> Any:
        if stage.name == end and len(file.read_text(encoding="utf-8")) < len("".join(lines)):
            raise KeyboardInterrupt
        return real(stage, work)

    monkeypatch.setattr(running, "timed", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    before = json.loads((out / "vocabulary" / "config.json").read_text())["vocab_size"]
    file.write_text("".join(lines), encoding="utf-8")
    run(job)
    after, whole = (json.loads((out / name / "config.json").read_text())["vocab_size"] for name in ("pruned", "model"))
    assert before < after == whole


def test_the_plan_says_whose_tokens_stay(model: Path, rows: Path, tmp_path: Path) -> None:
    told = {**TOLD, "vocabulary": {"scripts": "Latin, Greek"}}
    first = planned(job_of(recipe(model, rows, tmp_path / "out", **told)))[0]
    assert (first.name, first.about) == ("vocabulary", "only tokens stay that are used by the rows, Latin, Greek")


def test_a_vocabulary_that_nothing_uses_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    told = {**TOLD, "datasets": [{"type": "sampled", "tokens": 1024}]}
    with pytest.raises(RecipeError, match="vocabulary keeps the tokens of texts; give datasets of real text, or"):
        job_of(recipe(model, rows, tmp_path / "out", **told))
