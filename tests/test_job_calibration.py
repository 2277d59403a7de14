"""What a job prunes on: its own rows to train on where they are real text, and what is said about it; trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_jobs import STEPS, model, recipe, rows
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from dnge_compress.core.errors import RecipeError
from dnge_compress.data.rows import Examples
from dnge_compress.jobs import refusals, stages
from dnge_compress.jobs.calibrating import TOO_FEW, calibration_rows
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.running import run

__all__ = ["model", "rows"]  # fixtures


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every `compress` of a job is given as data."""
    seen: list[Any] = []
    real = stages.api.compress

    def compress(model: Any, recipe: Any, *, data: Any = None, **options: Any) -> Any:
        seen.append(data)
        return real(model, recipe, data=data, **options)

    monkeypatch.setattr(stages.api, "compress", compress)
    return seen


def test_a_job_prunes_on_its_own_rows_to_train_on_and_says_so(
    model: Path, rows: Path, tmp_path: Path, given: list[Any]
) -> None:
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, lora=None, train={"max_steps": 2})))
    assert report is not None
    (data,) = given
    train, held_out = (
        {tuple(row["input_ids"].tolist()) for row in Examples.load(path)}
        for path in (JobFolder(out).train_rows, JobFolder(out).held_out_rows)
    )
    seen = {
        tuple(ids[mask.bool()].tolist())
        for batch in data
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert seen and seen <= train and not seen & held_out
    assert sum(map(len, seen)) <= 256 + 32, "as many tokens as the recipe asks for"
    assert any(note.startswith("calibrated on 9 of ") and "of the job's rows" in note for note in report.notes)
    assert any("is read as text (text): all of it is learned" in note for note in report.notes)


@pytest.mark.parametrize(
    "changes",
    [{"calibrate_on": "synthetic"}, {"datasets": [{"type": "sampled", "tokens": 1024}]}],
    ids=["turned off", "no real text"],
)
def test_without_real_rows_or_if_told_so_the_models_own_text_is_taken(
    changes: dict[str, Any], model: Path, rows: Path, tmp_path: Path, given: list[Any]
) -> None:
    told = {"lora": None, "train": {"max_steps": 1}, "calibration": {"tokens": 128}}
    report = run(job_of(recipe(model, rows, tmp_path / "out", **told, **changes)))
    assert report is not None and given == [None]
    assert not any("calibrated on" in note for note in report.notes)


def test_few_rows_are_not_trusted_and_that_is_said(model: Path, rows: Path, tmp_path: Path, given: list[Any]) -> None:
    told = {"lora": None, "train": {"max_steps": 1}, "calibration": {"tokens": 30_000, "length": 32}}
    report = run(job_of(recipe(model, rows, tmp_path / "out", check=False, repair={"compensate": "none"}, **told)))
    assert report is not None and given == [None] and TOO_FEW in report.notes


def test_sampled_rows_among_real_ones_are_not_taken(model: Path, rows: Path, tmp_path: Path) -> None:
    out, sources = tmp_path / "out", [{"path": str(rows)}, {"type": "sampled", "tokens": 1024}]
    job = job_of(recipe(model, rows, out, datasets=sources, lora=None, prune=None, train={"max_steps": 1}))
    run(job)
    found = Examples.load(JobFolder(out).train_rows)
    assert 0 < found.real.sum() < len(found)
    real = {tuple(found[i]["input_ids"].tolist()) for i in np.flatnonzero(found.real)}
    data = calibration_rows(JobFolder(out), job, is_needed=False)
    assert data is not None
    seen = {
        tuple(ids[mask.bool()].tolist())
        for batch in data
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert seen and seen <= real


# --- trackers


def test_trackers_hear_of_the_training_and_not_of_trials(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, int, dict[str, float]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.append((args.run_name, state.global_step, logs))

    monkeypatch.setitem(getattr(integration_utils, refusals.REPORTERS), "wandb", Tracker)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    train = {"report_to": ["wandb"], "learning_rate": "auto"}
    run(job_of(recipe(model, rows, tmp_path / "out", prune=None, train=train)))
    assert {name for name, _, _ in heard} == {"out training"}
    assert [step for _, step, logs in heard if "eval_loss" in logs] == [0, 4, STEPS]
    assert any("loss" in logs for _, _, logs in heard)


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = job_of(recipe(model, rows, out, train={"report_to": "mlflow, comet_ml"}))
    assert job.train is not None and job.train.report_to == ("mlflow", "comet_ml")
    with pytest.raises(RecipeError, match="train.report_to is 'mlflow', which isn't installed; pip install it"):
        run(job)
    assert not out.exists()
    with pytest.raises(RecipeError, match="'train' report_to: 'none' stands alone"):
        job_of(recipe(model, rows, tmp_path / "other", train={"report_to": ["none", "wandb"]}))
    assert json.loads(json.dumps(job.model_dump(mode="json")))["train"]["report_to"] == ["mlflow", "comet_ml"]
