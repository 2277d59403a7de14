"""Jobs that were stopped, changed or robbed of files, and run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_jobs import ROOT, adapter, finished, losses, model, recipe, rows, stopped

from dnge_compress.cli.main import main
from dnge_compress.core.errors import CheckpointError
from dnge_compress.jobs import stages
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.launching import same_threads
from dnge_compress.jobs.running import run
from dnge_compress.jobs.trainer import WHOLE, JobTrainer
from dnge_compress.jobs.training import last_whole

__all__ = ["finished", "model", "rows"]  # fixtures


def test_a_finished_job_run_again_says_so_and_changes_nothing(finished: Path, capsys: Any) -> None:
    def stamps() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}

    before = stamps()
    assert main(["run", str(finished.with_suffix(".yaml")), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "finished; nothing was changed" in err and json.loads(out)["dnge_job_report"] == 1
    assert stamps() == before


@pytest.fixture(scope="module")
def finished_at_a_found_rate(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished job that found its learning rate."""
    out = tmp_path_factory.mktemp("runs") / "found"
    run(job_of(recipe(model, rows, out, train={"learning_rate": "auto"})))
    return out


@pytest.mark.parametrize("stage", ["data", "prune", "place", "rate", "train", "save", "measure"])
def test_a_job_that_stops_in_any_stage_goes_on_to_the_same_result(
    stage: str, model: Path, rows: Path, tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnge_compress.jobs import running

    rate: Any = "auto" if stage == "rate" else 0.05
    finished = request.getfixturevalue("finished_at_a_found_rate" if stage == "rate" else "finished")

    def torn(some: Any, work: Any) -> Any:
        facts = running_timed(some, work)
        if some.name == stage:
            raise KeyboardInterrupt  # done, but not recorded: the stage is repeated
        return facts

    running_timed = running.timed
    job = job_of(recipe(model, rows, tmp_path / "out", train={"learning_rate": rate}))
    with monkeypatch.context() as patch:
        patch.setattr(running, "timed", torn)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    run(job)
    for name, tensor in adapter(finished).items():
        assert torch.equal(adapter(tmp_path / "out")[name], tensor), name
    assert losses(tmp_path / "out") == losses(finished)


def started(path: Path, threads: int) -> subprocess.Popen[bytes]:
    """A job in a process of its own that is given so many CPU threads."""
    return subprocess.Popen(
        [sys.executable, "-m", "dnge_compress", "run", str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_job_says_for_good_that_it_goes_on_with_other_threads(tmp_path: Path, capsys: Any) -> None:
    folder = JobFolder(tmp_path)
    folder.state.write_text(json.dumps({"dnge_job": 1, "identity": "", "threads": 2, "stages": {}}))
    with same_threads(folder):
        assert torch.get_num_threads() == 2
    assert "goes on with 2 CPU threads" in capsys.readouterr().err and torch.get_num_threads() == 1


def test_a_job_whose_folder_records_no_threads_has_one(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.state.write_text(json.dumps({"dnge_job": 1, "identity": "", "stages": {}}))
    assert folder.threads == 1


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_killed_between_checkpoints_ends_bit_equal(
    threads: int, model: Path, rows: Path, finished: Path, tmp_path: Path, capsys: Any
) -> None:
    out, whole = tmp_path / "out", finished
    if threads > 1:  # `finished` was made with the one thread of the tests
        whole = tmp_path / "whole"
        assert started(recipe(model, rows, whole), threads).wait() == 0
    path = recipe(model, rows, out)
    running = started(path, threads)
    deadline = time.monotonic() + 120
    while not list(out.glob(f"training/checkpoint-*/{WHOLE}")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert last_whole(out / "training") is not None
    assert main(["run", str(path), "--json"]) == 0
    assert ("with 2 CPU threads, as the job began" in capsys.readouterr().err) == (threads == 2)
    assert torch.get_num_threads() == 1
    for name, tensor in adapter(whole).items():
        assert torch.equal(adapter(out)[name], tensor), name
    assert losses(out) == losses(whole)


def test_a_torn_checkpoint_is_never_loaded(model: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    path = recipe(model, rows, out)
    record = json.loads((out / "job.json").read_text())
    record["stages"] = {name: record["stages"][name] for name in ("data", "prune", "place")}
    (out / "job.json").write_text(json.dumps(record))
    newest = last_whole(out / "training")
    assert newest is not None
    (newest / WHOLE).unlink()
    (newest / "adapter_model.safetensors").write_bytes(b"torn")
    assert main(["run", str(path), "--json"]) == 0
    assert losses(out) == losses(finished)


def test_a_claim_that_was_killed_can_be_made_again(model: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml.part").write_text("recipe: j")
    (tmp_path / "out" / "recipe.yaml").write_text("recipe: job")
    run(job)
    assert losses(tmp_path / "out") == losses(finished)


def test_data_that_changed_since_a_stop_are_read_again_and_the_rest_stands(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    own = tmp_path / "own.jsonl"
    shutil.copy(rows, own)
    job = job_of(recipe(model, own, tmp_path / "out", calibrate_on="synthetic"))
    assert "prune" in stages.stages_that_saw_data(job_of(recipe(model, own, tmp_path / "other")))
    folder = JobFolder(Path(job.output_dir))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    pruned, trained = folder.done("prune"), folder.done("train")
    tokens = (folder.done("data") or {})["train"]["tokens"]
    os.utime(own, (1, 1))  # touched, but the same
    with monkeypatch.context() as patch:
        patch.setattr(stages, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    assert "changed" not in capsys.readouterr().err and folder.done("train") == trained
    lines = own.read_text().splitlines()
    own.write_text("\n".join(lines[:30]) + "\n")
    report = run(job)
    said = capsys.readouterr().err
    assert f"'{own}' changed since this job was stopped; data, train, measure, save start over" in said
    assert report is not None and report.rows["train tokens"] < tokens and folder.done("prune") == pruned
    assert losses(tmp_path / "out") == losses_of_a_fresh_run(model, own, tmp_path / "fresh")


def test_a_kill_while_stages_are_forgotten_begins_them_again_and_spares_the_users_files(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "out", JobFolder(tmp_path / "out")
    shutil.copytree(finished, out)
    for name in ("training.txt", "training-notes/a"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        folder.forget(["data", "train", "measure", "save"], [""])
    assert set(folder.read()["stages"]) == {"data", "prune", "place"} and (out / "training").is_dir()
    monkeypatch.undo()
    folder.forget(["data", "train", "measure", "save"], [""])
    assert set(folder.read()["stages"]) == {"prune", "place"} and not (out / "training").exists()
    assert (out / "training.txt").read_text() == (out / "training-notes" / "a").read_text() == "mine"


def losses_of_a_fresh_run(model: Path, rows: Path, out: Path) -> Any:
    """What a job that was never stopped comes to."""
    run(job_of(recipe(model, rows, out, calibrate_on="synthetic")))
    return losses(out)


def test_a_result_that_was_taken_away_is_made_again(model: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "model")
    run(job_of(recipe(model, rows, out)))
    assert (out / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    "gone",
    [("training", "model"), ("adapter", "model"), ("training", "report.json"), ("adapter",), ("lora_plan.json",),
     ("data", "training", "model"), ("pruned", "flat_adapter")],
    ids=" ".join,
)  # fmt: skip
def test_whatever_was_taken_away_of_a_finished_job_is_made_again(
    gone: tuple[str, ...], model: Path, rows: Path, finished_flat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished_flat, out)
    for name in gone:
        (shutil.rmtree if (out / name).is_dir() else os.remove)(out / name)
    run(job_of(recipe(model, rows, out, save={"flat_adapter": True})))
    assert {p.name for p in finished_flat.iterdir()} == {p.name for p in out.iterdir()}
    for name in ("model/model.safetensors", "flat_adapter/adapter_model.safetensors"):
        ours, theirs = load_file(out / name), load_file(finished_flat / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert losses(out) == losses(finished_flat)


@pytest.fixture(scope="module")
def finished_flat(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished job that left everything it can."""
    out = tmp_path_factory.mktemp("runs") / "flat"
    run(job_of(recipe(model, rows, out, save={"flat_adapter": True})))
    return out


def test_a_whole_model_whose_checkpoints_were_taken_away_is_trained_again_only_if_it_is_needed(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    job = job_of(recipe(model, rows, out, lora=None, prune=None))
    run(job)
    shutil.rmtree(out / "training")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", stopped)
        assert run(job) is not None  # room was made, and nothing is missing
    weights = load_file(out / "model" / "model.safetensors")
    shutil.rmtree(out / "model")
    run(job)
    again = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = JobTrainer._save_checkpoint

    def full(self: Any, *arguments: Any) -> None:
        if self.state.global_step > 2:
            raise OSError(28, "No space left on device")
        real(self, *arguments)

    job = job_of(recipe(model, rows, tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(JobTrainer, "_save_checkpoint", full)
        with pytest.raises(CheckpointError, match="No space left.*the last whole checkpoint stays"):
            run(job)
    last = last_whole(tmp_path / "out" / "training")
    assert last is not None and last.name == "checkpoint-2"
    run(job)
    assert losses(tmp_path / "out") == losses(finished)


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_interrupted_job_says_that_the_same_command_goes_on(
    has_begun: bool, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(*_: object) -> None:
        if has_begun:
            JobFolder(tmp_path / "out").root.mkdir()
            JobFolder(tmp_path / "out").state.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("dnge_compress.cli.job_running.run", interrupted)
    assert main(["run", str(recipe(model, rows, tmp_path / "out"))]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "dnge: interrupted"
    goes_on = f"dnge: '{tmp_path / 'out'}' keeps what is done; the same command goes on from there"
    assert (goes_on in said) == has_begun
