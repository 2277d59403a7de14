"""A real cluster of two workers: what it makes is what the pool makes, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from test_zoo import tiny

from dnge_compress.core.errors import CheckpointError, LaunchError
from dnge_compress.core.tensors import read_tensors
from dnge_compress.zoo import build as zoo
from dnge_compress.zoo.blueprint import Blueprint
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.engines import Engine
from dnge_compress.zoo.pretrain.train import measure_all

ray = pytest.importorskip("ray", reason="Ray isn't checked: install the extra ray")
pytestmark = pytest.mark.slow  # a cluster takes a quarter of a minute to start
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    """As many digits as targets are measured on, but random ones."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = np.arange(600, dtype=np.uint8) % 10
    digits = (rng.integers(0, 40, (600, 28, 28)) + 20 * labels[:, None, None]).astype(np.uint8)
    np.savez(folder / "mnist.npz", x_train=digits[:400], y_train=labels[:400], x_test=digits[400:], y_test=labels[400:])
    return DataRoot(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for the tests that don't end it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    signal.signal(signal.SIGTERM, before)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers don't find the tests
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


def plans() -> list[Blueprint]:
    """Two runs, of which each gives three networks."""
    first = tiny("mlp", data="mnist", steps=5, stop=5)
    return [first, replace(first, name=f"{first.name}-again", seed=first.seed + 1)]


def content(folder: Path) -> dict[str, tuple[dict[str, bytes], dict[str, str]]]:
    """Weights and targets below a folder, to the last bit, and what their headers say. Their order in a header is
    chance, and when and how fast they were made differs."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        tensors, header = read_tensors(file)
        found[str(file.relative_to(folder))] = ({k: v.numpy().tobytes() for k, v in tensors.items()}, dict(header))
    return found


def where(number: int) -> tuple[int, int, str]:
    return os.getpid(), torch.get_num_threads(), str(Path.cwd())


def refuse() -> None:
    raise CheckpointError("'here' holds another set; choose another output")


def die(told: Path) -> None:
    with told.open("a", encoding="utf-8") as file:
        file.write("died\n")
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_the_first_network(plan: Blueprint, out: Path, data_root: DataRoot, told: Path) -> list[Path]:
    """Train a run; the process kills itself when it has saved one of three networks, unless another did before."""
    save = zoo._save

    def save_and_die(network: Blueprint, *given: Any) -> None:
        save(network, *given)
        told.write_text(str((out / network.name / "model.safetensors").stat().st_ino), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)

    if not told.exists():
        zoo._save = save_and_die
    return zoo.train_networks(plan, out, data_root=data_root)


def test_workers_of_ray_are_other_processes_of_one_thread_in_our_folder(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for pid, threads, folder in Engine("ray", 2).each_done(where, [(0,), (1,)]):
        assert pid != os.getpid() and threads == 1 and folder == str(tmp_path)
    assert ray.is_initialized()


def test_a_failure_in_a_worker_of_ray_reaches_the_caller_as_it_was_raised(cluster: None) -> None:
    with pytest.raises(CheckpointError) as told:
        list(Engine("ray", 2).each_done(refuse, [()]))
    assert type(told.value) is CheckpointError
    assert str(told.value) == "'here' holds another set; choose another output"


def test_a_task_that_kills_every_worker_is_given_up_in_one_line(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="died 4 times.*run the same command again"):
        list(Engine("ray", 2).each_done(die, [(tmp_path / "told",)]))
    assert (tmp_path / "told").read_text(encoding="utf-8").count("died") == 4


def test_what_a_killed_worker_had_finished_is_kept_and_the_rest_is_made_to_the_same_bits(
    cluster: None, data_root: DataRoot, tmp_path: Path
) -> None:
    (plan, _), told, out = plans(), tmp_path / "told", tmp_path / "ray"
    (folders,) = Engine("ray", 2).each_done(die_after_the_first_network, [(plan, out, data_root, told)])
    assert (folders[0] / "model.safetensors").stat().st_ino == int(told.read_text(encoding="utf-8"))
    assert len(folders) == 3
    zoo.train_networks(plan, tmp_path / "here", data_root=data_root)
    assert content(out) == content(tmp_path / "here")
    assert [f.name for f in out.iterdir() if f.name.startswith(".")] == []


def test_a_zoo_and_its_targets_are_those_of_the_pool_though_a_worker_is_killed_from_outside(
    cluster: None, data_root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "blueprints", lambda runs, seed: plans())
    pool, out = tmp_path / "pool", tmp_path / "ray"
    zoo.build_zoo(pool, 2, 0, data_root, Engine("pool", 2))
    measure_all(pool, data_root, Engine("pool", 2))
    with killing(lambda: len(zoo.finished(out)) > 0) as dead:
        zoo.build_zoo(out, 2, 0, data_root, Engine("ray", 2))
        measure_all(out, data_root, Engine("ray", 2))
    assert dead, "no worker was at work"
    assert content(out) == content(pool) and len(content(pool)) == 12  # six networks, and their targets


@contextmanager
def killing(is_time: Callable[[], bool]) -> Iterator[list[int]]:
    """Kill one worker of Ray's as soon as something is so; yields a list of those that were."""
    dead, is_over = list[int](), threading.Event()

    def watch() -> None:
        while not (dead or is_over.wait(0.02)):
            for worker in workers_of(os.getpid()):
                if title(worker) == "ray::_carry_out" and not dead and is_time():
                    worker.kill()
                    dead.append(worker.pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield dead
    finally:
        is_over.set()
        thread.join()


def title(process: psutil.Process) -> str:
    """What a process calls itself, which for a worker of Ray's is what it does: ray::_carry_out."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()  # it is padded
    return ""


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that Ray started for one of ours, and that carry out tasks."""
    return [p for p in psutil.Process(pid).children(recursive=True) if title(p).startswith("ray::")]


SCRIPT = """
import sys, time
from pathlib import Path
from dnge_compress.cli import training_commands
from dnge_compress.cli.main import main
from dnge_compress.zoo.engines import Engine

def sleep(path):
    Path(path).write_text("here")
    time.sleep(300)

def build(out, runs, seed, data_root, engine, progress):
    list(engine.each_done(sleep, [(sys.argv[1],)]))

if __name__ == "__main__":
    training_commands.build_zoo = build
    sys.exit(main(["zoo", "--engine", "ray", "--data-folder", sys.argv[2], "-o", sys.argv[3]]))
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "dnge: interrupted"),
        (signal.SIGTERM, 143, "dnge: terminated"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_command_that_is_ended_ends_ray_as_well(
    number: signal.Signals, code: int, line: str, data_root: DataRoot, tmp_path: Path
) -> None:
    script, told = tmp_path / "job.py", tmp_path / "told"
    script.write_text(SCRIPT, encoding="utf-8")
    words = [sys.executable, str(script), str(told), str(data_root.data), str(tmp_path / "zoo")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes) as command:
        deadline = time.time() + 120
        while not told.is_file() and command.poll() is None and time.time() < deadline:
            time.sleep(0.1)
        started = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(number)
        out, err = command.communicate(timeout=60)
    assert command.returncode == code and out == "" and err.strip().splitlines()[-1:] == ([line] if line else [])
    assert started and psutil.wait_procs(started, timeout=30)[1] == []
