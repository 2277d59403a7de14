"""Jobs that prune in rounds: what each takes, what it leaves for the next, and that all of it goes on after a kill."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_jobs import model, recipe, rows
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dnge_compress import load
from dnge_compress.core.errors import CheckpointError, RecipeError
from dnge_compress.core.wording import count
from dnge_compress.jobs import folder as folders
from dnge_compress.jobs import rounds, stages
from dnge_compress.jobs.checking import due, job_of
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.outline import estimate, planned, stage_names
from dnge_compress.jobs.running import run

__all__ = ["model", "rows"]  # fixtures
TOLD: dict[str, Any] = {
    "rounds": 3,
    "prune": {"ratio": 0.6, "of": "units", "kinds": ["neuron"]},
    "distill": {"weight": 0.5},
    "train": {"max_steps": 4, "eval_steps": 2, "save_steps": 2},
}


@pytest.fixture(scope="module")
def finished(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rounds"
    assert run(job_of(recipe(model, rows, out, **TOLD))) is not None
    return out


def widths(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["intermediate_size"]


def test_every_round_takes_an_equal_share_of_what_is_left(finished: Path) -> None:
    assert [widths(finished / f"round-{i}" / "model") for i in (1, 2)] == [
        29,
        21,
    ]  # of 40, times .4^(1/3) each, rounded
    assert widths(finished / "model") == widths(finished / "pruned") == 15
    AutoModelForCausalLM.from_pretrained(finished / "model")


def test_the_report_shows_each_round(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    names = [m["name"] for m in report["milestones"]]
    assert names == ["original", "round 1", "round 2", "pruned", "trained"]
    params = [m["params"] for m in report["milestones"]]
    assert params == sorted(params, reverse=True) and len(set(params[:4])) == 4
    assert all(m["loss"] for m in report["milestones"])
    assert report["stages"][:3] == ["data", "round 1", "round 2"]
    assert {(w["kept"], w["total"]) for w in report["widths"] if w["kind"] == "neuron"} == {(15, 40)}
    assert [curve["name"] for curve in report["curves"]] == ["trained", "trained in round 1", "trained in round 2"]


def test_a_round_begins_with_what_the_one_before_learned_and_is_taught_by_the_original(
    model: Path, finished: Path
) -> None:
    told = (finished / "round-2" / "recipe.yaml").read_text()
    assert f"model_name_or_path: {finished / 'round-1' / 'model'}" in told and f"teacher: {model}" in told


def test_a_job_that_stops_in_a_round_goes_on_there_and_ends_alike(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, ran = tmp_path / "rounds", stages.timed, []

    def stopped(stage: Any, work: Any) -> Any:
        ran.append((work.folder.root.name, stage.name))
        if ran[-1] == ("round-2", "train") and ran.count(ran[-1]) == 1:
            raise KeyboardInterrupt
        return real(stage, work)

    monkeypatch.setattr(stages, "timed", stopped)
    job = job_of(recipe(model, rows, out, **TOLD))
    with pytest.raises(KeyboardInterrupt):
        run(job)
    assert run(job) is not None
    assert ran.count(("round-1", "train")) == 1 and ran.count(("round-2", "prune")) == 1
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_uneven_models_go_in_rounds_as_well(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    uneven = {"uneven": True, "protected": ["*.layers.0.*"], "of": "parameters", "ratio": 0.2}
    report = run(job_of(recipe(model, rows, out, **{**TOLD, "rounds": 2, "prune": uneven})))
    assert report is not None
    first, small = (load(folder) for folder in (out / "round-1" / "model", out / "model"))
    sizes = [report.milestones[0].params, *(sum(p.numel() for p in found.parameters()) for found in (first, small))]
    assert [m.params for m in report.milestones[:3]] == sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    plan: Any = small.dnge.plan
    assert plan.uneven and plan.params_before == sizes[0] and plan.params_after == sizes[2]
    kept = {row.space: (row.kept, row.total) for row in report.widths if row.kind == "neuron"}
    assert kept["ffn.0"] == (40, 40) and kept["ffn.1"][0] < 40 == kept["ffn.1"][1]


@pytest.mark.slow
@pytest.mark.parametrize("is_launched", [False, True])
def test_rounds_in_two_processes_end_as_in_one_at_doubled_batch(
    is_launched: bool, model: Path, rows: Path, tmp_path: Path
) -> None:
    told = TOLD | {"rounds": 2, "lora": {"lora_dropout": 0.0}, "calibration": {"tokens": 1024}}
    one, two = tmp_path / "one", tmp_path / "two"
    run(job_of(recipe(model, rows, one, **told | {"train": told["train"] | {"per_device_train_batch_size": 4}})))
    path = recipe(model, rows, two, **told, launch={"num_processes": 2})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if is_launched else []
    command = [sys.executable, *launcher, "-m", "dnge_compress", "run", str(path)]
    outcome = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (two, one))
    assert ours["machine"]["processes"] == "2"
    for a, b in zip(ours["milestones"], theirs["milestones"], strict=True):
        assert (a["name"], a["params"]) == (b["name"], b["params"])
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)


def test_rounds_of_what_has_none_are_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    told = {"rounds": 2, "train": None, "lora": None, "datasets": None}
    with pytest.raises(RecipeError, match="rounds prune and train in turn; they need prune and train"):
        job_of(recipe(model, rows, tmp_path / "out", **told))
    with pytest.raises(RecipeError, match="rounds share out prune.ratio; give that in the place of params"):
        job_of(recipe(model, rows, tmp_path / "out", rounds=2), {"params": "1M"})


def test_the_plan_says_what_each_round_takes(model: Path, rows: Path, tmp_path: Path) -> None:
    found = {stage.name: stage.about for stage in planned(job_of(recipe(model, rows, tmp_path / "out", **TOLD)))}
    assert list(found)[:4] == ["data", "round 1", "round 2", "prune"]
    assert found["round 1"] == "prunes 26.3% of what is left, and recovers"
    assert found["prune"].startswith("26.3% of what is left of the units")


def test_rounds_and_what_goes_on_from_them_start_over_when_the_rows_are_others(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out", **TOLD, calibrate_on="synthetic"))
    assert stages.stages_that_saw_data(job) == [stage.name for stage in planned(job)]


def without(finished: Path, out: Path, *names: str) -> Path:
    """A copy of a job's folder that lacks some of what is in it."""
    shutil.copytree(finished, out)
    for name in names:
        shutil.rmtree(out / name)
    return out


def test_the_rounds_before_one_that_is_gone_are_made_again_with_it(
    model: Path, rows: Path, finished: Path, tmp_path: Path
) -> None:
    out = without(finished, tmp_path / "rounds", "round-1", "round-2", "pruned")
    job = job_of(recipe(model, rows, out, **TOLD))
    assert {"round 1", "round 2", "prune"} <= due(JobFolder(out), job)


def test_the_report_keeps_the_curves_of_rounds_that_somebody_deleted(
    model: Path, rows: Path, finished: Path, tmp_path: Path
) -> None:
    out = without(finished, tmp_path / "rounds", "round-1", "round-2", "model")
    job = job_of(recipe(model, rows, out, **TOLD))
    assert due(JobFolder(out), job) == {"save"}
    report = run(job)
    assert report is not None and [curve.name for curve in report.curves][1:] == [
        "trained in round 1",
        "trained in round 2",
    ]


def test_a_round_waits_for_the_processes_that_a_killed_run_left_in_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rounds"
    shutil.copytree(finished, out)
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    outer = JobFolder(out)
    inner, job = rounds.of_round(outer, outer.job(), 1)
    with folders.at_work(inner), pytest.raises(CheckpointError, match="still at work"):
        rounds.begin(outer, inner, job)
    rounds.begin(outer, inner, job)


def test_a_job_that_is_moved_keeps_its_rounds(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    job = job_of(recipe(model, rows, tmp_path / "moved", **TOLD))
    folder, ran, real = JobFolder(tmp_path / "moved"), [], stages.timed
    folder.forget(["round 2", "prune", "place", "train", "measure", "save"], [""])
    for name in ("round-1", "round-2"):
        shutil.copytree(finished / name, folder.root / name)

    def timed(stage: Any, work: Any) -> Any:
        ran.append((work.folder.root.name, stage.name))
        return real(stage, work)

    monkeypatch.setattr(stages, "timed", timed)
    assert run(job) is not None
    assert not ran  # no stage inside of a round
    assert folder.round(2).job().model_name_or_path == str(folder.round(1).model)  # which other processes read


def test_a_folder_of_a_rounds_name_that_is_somebody_elses_stays(model: Path, rows: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "round-1" / "notes.txt"
    job = job_of(recipe(model, rows, tmp_path / "out", **TOLD))
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(CheckpointError, match="round-1' holds no round of ours; move it, or name another output_dir"):
        rounds.begin(JobFolder(tmp_path / "out"), *rounds.of_round(JobFolder(tmp_path / "out"), job, 1))
    assert theirs.read_text() == "mine" and list(theirs.parent.iterdir()) == [theirs]
    theirs.rename(theirs.with_name(".job.json.123.part"))  # what a kill of our own leaves
    (tmp_path / "out" / "data").mkdir()
    for file in (JobFolder(tmp_path / "out").train_rows, JobFolder(tmp_path / "out").held_out_rows):
        file.touch()
    rounds.begin(JobFolder(tmp_path / "out"), *rounds.of_round(JobFolder(tmp_path / "out"), job, 1))


def test_the_report_has_what_early_rounds_said(finished: Path) -> None:
    notes = json.loads((finished / "report.json").read_text())["notes"]
    assert any(note.startswith("round 1: repair by") for note in notes)
    assert any(note.startswith("repair by") for note in notes)


def test_what_is_done_is_known_without_the_rows(model: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    shutil.copy(rows, own)
    job = job_of(recipe(model, own, tmp_path / "out", **TOLD))
    own.unlink()
    assert stage_names(job) == [stage.name for stage in planned(job_of(recipe(model, rows, finished, **TOLD)))]
    assert due(JobFolder(finished), job) == set()


def test_a_dry_run_counts_what_rounds_leave_on_the_disk(model: Path, rows: Path, tmp_path: Path) -> None:
    one, three = (
        estimate(job_of(recipe(model, rows, tmp_path / "out", **{**TOLD, "rounds": rounds})))["disk"]
        for rounds in (1, 3)
    )
    whole = (model / "model.safetensors").stat().st_size
    whole_model = LlamaForCausalLM.from_pretrained(model)
    params, blocks = whole_model.num_parameters(), whole_model.model.layers.modules()
    kept = 2 * 12 + 4  # two checkpoints with two moments each, and the best
    adapters = (kept + 4) * sum(2 * sum(m.weight.shape) for m in blocks if isinstance(m, nn.Linear))  # and the result
    for found, times in ((one, 1), (three, 3)):
        assert found == f"at most {count(times * (2 * whole + adapters), 'B')}"
    compared = {**TOLD, "compare": ["kappa", "mlp"]}  # in the last round alone
    found = estimate(job_of(recipe(model, rows, tmp_path / "out", **compared)))["disk"]
    assert found == f"at most {count(6 * whole + 5 * adapters, 'B')}"
    flat = {**TOLD, "lora": None, "compare": None}
    one, three = (
        estimate(job_of(recipe(model, rows, tmp_path / "out", **{**flat, "rounds": rounds})))["disk"]
        for rounds in (1, 3)
    )
    for found, times in ((one, 1), (three, 3)):
        assert found == f"at most {count(times * (2 * whole + kept * params), 'B')}"
