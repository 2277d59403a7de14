"""Trackers of experiments: what they hear, that each training has a run of its own, and refusals before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_jobs import STEPS, model, recipe, rows
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from dnge_compress.core.errors import LaunchError, RecipeError
from dnge_compress.jobs import trackers
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.running import run

__all__ = ["model", "rows"]  # fixtures


def tracked_by(callback: type[TrainerCallback], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Something that goes for Weights & Biases, with an account, which transformers drives by a callback."""
    settings = SimpleNamespace(mode="online")
    wandb = SimpleNamespace(run=None, login=lambda prompt, verify: True, finish=lambda exit_code: None)
    wandb.setup = lambda: SimpleNamespace(settings=settings)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(getattr(integration_utils, trackers.REPORTERS), "wandb", callback)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return wandb


def test_trackers_hear_of_the_training_and_not_of_trials(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, int, dict[str, float]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.append((args.run_name, state.global_step, logs))

    tracked_by(Tracker, monkeypatch)
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


def test_every_training_has_a_run_of_its_own(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, codes = [], [], []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if wandb.run is None:  # as transformers' own does
                wandb.run = args.run_name
                begun.append(args.run_name)

    def finish(exit_code: int) -> None:
        ended.append(wandb.run)
        codes.append(exit_code)
        wandb.run = None

    wandb = tracked_by(Tracker, monkeypatch)
    wandb.finish = finish
    told = {"train": {"report_to": ["wandb"], "max_steps": 2}, "compare": ["uniform"], "prune": None}
    run(job_of(recipe(model, rows, tmp_path / "out", **told)))
    assert begun == ended == ["out training", "out training-uniform"]
    assert codes == [0, 0]
    wandb.run = "the caller's"
    run(job_of(recipe(model, rows, tmp_path / "other", **told)))
    assert wandb.run == "the caller's" and len(ended) == 2


def test_a_tracker_without_an_account_is_refused_before_any_work_and_one_that_fails_later_is_told(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = type("CommError", (Exception,), {"__module__": "wandb.errors"})

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise refused("no such host")

    wandb = tracked_by(Tracker, monkeypatch)
    job = job_of(recipe(model, rows, tmp_path / "out", prune=None, train={"report_to": "wandb"}))
    with pytest.raises(LaunchError, match=r"report_to: wandb refuses the run \(no such host\); mend that, and run"):
        run(job)
    wandb.login = lambda prompt, verify: False
    other = recipe(model, rows, tmp_path / "other", train={"report_to": "wandb"})
    with pytest.raises(RecipeError, match="'wandb', and wandb isn't logged in; log in .wandb login., or set"):
        run(job_of(other))
    assert not (tmp_path / "other").exists()
    with pytest.raises(RecipeError, match="report_to is 'all', and wandb isn't logged in"):
        trackers.refuse_tracker("all")
    wandb.setup().settings.mode = "offline"  # as the command `wandb offline` leaves it
    trackers.refuse_tracker("wandb")
    with pytest.raises(LaunchError, match="wandb refuses the run"), trackers.followed(("all",)):
        raise refused("no such host")
