"""Workers end with whoever started them, and the first failure ends the queue; Ray is spoken to as it wants to be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from dnge_compress.cli import training_commands
from dnge_compress.cli.grammar import parser
from dnge_compress.cli.main import main
from dnge_compress.core.errors import CheckpointError, DataError, LaunchError, UnknownNameError
from dnge_compress.zoo import ray_workers
from dnge_compress.zoo.engines import Engine, EngineName
from dnge_compress.zoo.workers import each_done

SCRIPT = """
import sys, time
from pathlib import Path
from dnge_compress.zoo.workers import each_done

def work(path):
    import os
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    list(each_done(1, work, [(sys.argv[1],)]))
"""


def test_results_come_from_other_processes() -> None:
    assert sorted(each_done(1, abs, [(-1,), (2,)])) == [1, 2]


def test_a_failure_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(each_done(1, int, [("x",)]))


def test_a_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script, told = tmp_path / "job.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    root = str(Path(__file__).resolve().parents[1])
    parent = subprocess.Popen([sys.executable, str(script), str(told)], env=os.environ | {"PYTHONPATH": root})
    deadline = time.time() + 60
    while not (told.is_file() and told.read_text()) and time.time() < deadline:
        time.sleep(0.1)
    worker = int(told.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.time() + 20
    while Path(f"/proc/{worker}").exists() and time.time() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{worker}").exists()


class Ray:
    """What ray_workers asks of Ray, in this process. A task is carried out when it is waited for, the last first."""

    def __init__(self) -> None:
        self.began: dict[str, Any] | None = None
        self.is_foreign = self.is_dead = False
        self.ended, self.most = 0, 0
        self.cancelled: list[Any] = []
        kinds = {name: type(name, (Exception,), {}) for name in ("RayError", "RayTaskError")}
        self.exceptions = SimpleNamespace(**kinds)

    def is_initialized(self) -> bool:
        return self.is_foreign

    def init(self, address: str, **settings: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *a: None)  # as it does
        self.began = settings | {"address": address}

    def shutdown(self) -> None:
        self.ended += 1

    def remote(self, **settings: Any) -> Callable[[Callable[..., Any]], Any]:
        self.settings = settings
        return lambda action: SimpleNamespace(remote=lambda *task: (action, task))

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(running))
        return running[-1:], running[:-1]

    def get(self, done: Any) -> Any:
        if self.is_dead:
            raise self.exceptions.RayError("The worker died unexpectedly.\nMore words")
        action, task = done
        try:
            return action(*task)
        except Exception as e:
            wrapped = self.exceptions.RayTaskError()
            wrapped.cause = e
            raise wrapped from e

    def cancel(self, task: Any, *, force: bool) -> None:
        assert force
        self.cancelled.append(task)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    found = Ray()
    monkeypatch.setattr(ray_workers, "installed", lambda: found)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    return found


def test_ray_gives_every_result_from_as_many_processes_as_were_asked_for(ray: Ray) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = Engine("ray", 2).each_done(abs, [(-n,) for n in range(5)])
    assert ray.began is None  # until somebody asks
    assert sorted(found) == [0, 1, 2, 3, 4] and ray.most == 2 and ray.ended == 1
    assert ray.settings == {"num_cpus": 1, "max_retries": ray_workers.RETRIES}
    assert ray.began is not None and ray.began["address"] == "local" and ray.began["num_cpus"] == 2
    assert ray.began["include_dashboard"] is False and ray.began["log_to_driver"] is False
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and signal.getsignal(signal.SIGTERM) is before


def test_nothing_to_do_starts_no_ray(ray: Ray) -> None:
    assert list(Engine("ray").each_done(abs, [])) == [] and ray.began is None


def test_ray_tells_a_failure_as_it_was_raised_and_ends_the_rest(ray: Ray) -> None:
    with pytest.raises(ValueError, match="invalid literal") as told:
        list(Engine("ray", 2).each_done(int, [("1",), ("x",), ("3",)]))
    assert type(told.value) is ValueError
    assert len(ray.cancelled) == 1 and ray.ended == 1


def test_who_stops_asking_ends_what_ray_still_does(ray: Ray) -> None:
    found = Engine("ray", 3).each_done(abs, [(1,), (2,), (3,)])
    next(found)
    found.close()
    assert len(ray.cancelled) == 2 and ray.ended == 1


def test_a_task_whose_workers_all_die_is_told_in_one_line_with_a_way_out(ray: Ray) -> None:
    ray.is_dead = True
    with pytest.raises(
        LaunchError, match=r"died 4 times \(The worker died unexpectedly.\).*run the same command again"
    ):
        list(Engine("ray").each_done(abs, [(1,)]))
    assert ray.ended == 1


def test_a_machine_that_lacks_the_package_is_told_what_it_needs(ray: Ray) -> None:
    def unread(*task: object) -> None:
        raise ray.exceptions.RayError("System error: No module named 'dnge_compress'\ntraceback: …")

    with pytest.raises(LaunchError, match=r"\(System error: No module named 'dnge_compress'\); all machines"):
        list(Engine("ray").each_done(unread, [()]))


def test_a_cluster_that_an_address_names_keeps_its_own_size(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert list(Engine("ray", 2).each_done(abs, [(-1,)])) == [1]
    assert ray.began is not None and ray.began["address"] == "10.0.0.1:6379" and "num_cpus" not in ray.began


def test_a_cluster_of_the_callers_stays(ray: Ray) -> None:
    ray.is_foreign = True
    assert list(Engine("ray", 2).each_done(abs, [(-1,)])) == [1]
    assert ray.began is None and ray.ended == 0


def test_a_cluster_that_does_not_answer_is_named(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise ConnectionError("no Ray there\nat all")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(
        LaunchError, match=r"'10\.0\.0\.1:6379' can't be used \(no Ray there\); correct or unset RAY_ADDRESS"
    ):
        list(Engine("ray").each_done(abs, [(1,)]))


def test_a_signal_while_ray_starts_reaches_its_handler(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*args: object, **settings: object) -> None:
        signal.signal(signal.SIGTERM, lambda *a: None)
        raise SystemExit(signal.SIGTERM)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", ended)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(Engine("ray").each_done(abs, [(1,)]))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_machine_without_the_folder_is_named(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "elsewhere")
    with pytest.raises(LaunchError, match=r"can't enter '.*elsewhere' \(No such file.*share"):
        list(Engine("ray").each_done(abs, [(1,)]))


def test_an_engine_that_is_none_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'pool'"):
        Engine("pol")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="jobs is 0"):
        Engine("pool", 0)


@pytest.mark.parametrize("command", ["zoo", "pretrain"])
def test_a_command_hands_its_engine_to_what_it_builds_and_keeps_stdout_for_data(
    command: str, ray: Ray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):
        pass

    seen: list[Any] = []

    def build(*given: Any) -> None:
        seen.extend(value for value in given if isinstance(value, Engine))
        print("a worker died")  # as Ray does
        raise Stop

    monkeypatch.setattr(training_commands, "build_zoo", build)
    monkeypatch.setattr(training_commands.DataRoot, "find", lambda *given: None)
    for words in ([], ["--engine", "ray", "--jobs", "3"]):
        options = parser().parse_args([command, *words])
        with pytest.raises(Stop):
            getattr(training_commands, command)(options)
    assert seen == [Engine("pool", 1), Engine("ray", 3)]
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("a worker died") == 2


def test_the_grammar_offers_every_engine() -> None:
    for name in get_args(EngineName):
        assert parser().parse_args(["zoo", "--engine", name]).engine == name


def test_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["zoo", "-o", str(tmp_path / "zoo"), "--engine", "ray"]) == 2
    told = capsys.readouterr().err
    assert "pip install 'dnge-compress[ray]'" in told and told.count("\n") == 1 and not (tmp_path / "zoo").exists()


def test_what_a_training_goes_on_from_stays_until_the_encoder_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, taken = tmp_path / "training.pt", tmp_path / "model"
    taken.mkdir()
    (taken / "config.json").write_text('{"model_type": "bert"}')
    made, saved = list[str](), list[Path]()

    class Encoder:
        def save_pretrained(self, path: Path, provenance: Any) -> None:
            saved.append(path)
            if path.name == "full":
                raise CheckpointError("no room")

    def trained(*given: Any, **named: Any) -> Any:
        made.append("trained")
        state.touch()
        return Encoder(), {"networks": 1, "steps": 1, "spearman": {}}

    monkeypatch.setattr(training_commands, "build_zoo", lambda *given: None)
    monkeypatch.setattr(training_commands, "pretrain_encoder", trained)
    monkeypatch.setattr(training_commands.DataRoot, "find", lambda *given: None)
    words = ["pretrain", "--zoo", str(tmp_path), "-o"]
    with pytest.raises(CheckpointError, match="holds another model"):
        training_commands.pretrain(parser().parse_args([*words, str(taken)]))
    assert not made  # it is refused before the training
    with pytest.raises(CheckpointError, match="no room"):
        training_commands.pretrain(parser().parse_args([*words, str(tmp_path / "full")]))
    assert state.is_file()
    training_commands.pretrain(parser().parse_args([*words, str(tmp_path / "encoder")]))
    assert not state.is_file() and [path.name for path in saved] == ["full", "encoder"]
