"""Jobs that train in several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_jobs import ROOT, adapter, model, recipe, rows

from dnge_compress.cli.main import main
from dnge_compress.core.errors import LaunchError
from dnge_compress.jobs import training
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder, claim
from dnge_compress.jobs.running import run
from dnge_compress.jobs.trainer import WHOLE
from dnge_compress.jobs.training import last_whole

__all__ = ["model", "rows"]  # fixtures


def test_two_processes_train_as_one_at_doubled_batch(model: Path, rows: Path, tmp_path: Path) -> None:
    lora = {"lora_dropout": 0.0}
    one, two = tmp_path / "one", tmp_path / "two"
    batch = {"per_device_train_batch_size": 4}
    assert main(["run", str(recipe(model, rows, one, lora=lora, train=batch))]) == 0
    assert main(["run", str(recipe(model, rows, two, lora=lora, launch={"num_processes": 2}))]) == 0
    for name, tensor in adapter(one).items():
        torch.testing.assert_close(adapter(two)[name], tensor, atol=1e-4, rtol=0)
    machine = json.loads((two / "report.json").read_text())["machine"]
    assert (machine["processes"], machine["strategy"]) == ("2", "ddp")


@pytest.mark.slow
def test_several_processes_end_with_a_killed_leader_and_the_next_run_waits_for_them(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train = {"max_steps": 4000, "save_steps": 2, "per_device_train_batch_size": 1}
    path = recipe(model, rows, out, launch={"num_processes": 2}, train=train)
    leader = subprocess.Popen(
        [sys.executable, "-m", "dnge_compress", "run", str(path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not list(out.glob(f"training/checkpoint-*/{WHOLE}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    with claim(JobFolder(out), job_of(path), {}, 1):  # comes when the workers are gone
        last = last_whole(out / "training")
        time.sleep(2)
        assert last == last_whole(out / "training")


@pytest.mark.slow
def test_an_outer_launcher_is_joined_and_its_size_checked(model: Path, rows: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = recipe(model, rows, tmp_path / "out", launch={"num_processes": 2}, train={"per_device_train_batch_size": 1})
    command = [*launcher, "-m", "dnge_compress", "run", str(path), "--json"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["machine"]["processes"] == "2"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "nothing was changed" in again.stderr
    alone = recipe(model, rows, tmp_path / "other", launch={"num_processes": 1})
    refused = subprocess.run(
        [*launcher, "-m", "dnge_compress", "run", str(alone)], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode != 0 and "asks for 1, but 2 were launched" in refused.stderr


def test_a_training_on_fewer_processes_than_asked_for_is_an_error(model: Path, rows: Path, tmp_path: Path) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out", launch={"num_processes": 2}))
    alone = job.model_copy(update={"launch": job.launch.model_copy(update={"num_processes": 1})})
    run(alone)
    with pytest.raises(LaunchError, match="asks for 2, but 1 train"):
        training.train(JobFolder(tmp_path / "out"), job)


def test_sharding_that_is_not_obtained_is_an_error(model: Path, rows: Path, tmp_path: Path) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out"))
    run(job)
    asked = job.launch.model_copy(update={"strategy": "fsdp2"})
    with pytest.raises(LaunchError, match="fsdp"):
        training.train(JobFolder(tmp_path / "out"), job.model_copy(update={"launch": asked}))
