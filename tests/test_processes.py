"""Two processes give one process's plan and weights."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dnge_compress.cli.main import main
from dnge_compress.core import processes
from dnge_compress.core.errors import DngeError, LaunchError
from dnge_compress.core.launcher import launcher_world, local_rank
from dnge_compress.signals import own_examples as examples_of
from dnge_compress.signals.fits import spread_examples_of
from dnge_compress.signals.own_examples import own_examples

SCRIPT = """
import sys
from contextlib import nullcontext
import torch
import models
from dnge_compress import compress, save
from dnge_compress.core.launcher import local_rank
from dnge_compress.core.processes import joined_processes, rank
from dnge_compress.signals import joint_fit, second_moments
if int(sys.argv[5]) > 5:  # shared: products in bfloat16 make 1e-4 of a last digit
    joint_fit.fast_float32_products = nullcontext
second_moments.MEMORY_BYTES = int(sys.argv[3])
torch.set_num_threads(1)  # as torchrun has it: several threads round otherwise, and a joint fit amplifies that
with joined_processes():
    generator = torch.Generator().manual_seed(3)
    data = None
    if sys.argv[1] == "llama":
        data = [{"input_ids": torch.randint(4, 61, (3, 11), generator=generator)} for _ in range(int(sys.argv[5]))]
        if sys.argv[6] == "padded":
            lengths = [torch.randint(4, 12, (3, 1), generator=generator) for _ in data]
            data = [b | {"attention_mask": (torch.arange(11) < n).long()} for b, n in zip(data, lengths)]
    example = None if models.MODELS[sys.argv[1]].family else models.example_inputs(sys.argv[1])
    place = f"cuda:{local_rank(rank())}" if sys.argv[4] == "cuda" else "cpu"
    small = compress(models.make(sys.argv[1]).to(place), ratio=0.3, data=data, example_inputs=example)
    save(small, sys.argv[2])
    if rank() == 1:
        torch.save({name: t.cpu() for name, t in small.state_dict().items()}, sys.argv[2] + ".other")
"""


def run(
    name: str,
    out: Path,
    processes: int,
    memory: int,
    tmp_path: Path,
    device: str = "cpu",
    batches: int = 5,
    padding: str = "",
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        script,
        name,
        out,
        memory,
        device,
        batches,
        padding,
    ]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=300)


@pytest.mark.parametrize(
    ("name", "memory", "batches", "padding"),
    [
        ("llama", 0, 5, ""),  # block by block
        ("llama", 1 << 30, 43, "padded"),  # enough for each process to fit on its share, and to hold some out
        pytest.param("llama", 1 << 30, 14, "", marks=pytest.mark.slow),
        pytest.param("llama", 1 << 30, 5, "", marks=pytest.mark.slow),
        pytest.param("cnn", 1 << 30, 5, "", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_plan_and_the_weights_of_one(
    name: str, memory: int, batches: int, padding: str, tmp_path: Path
) -> None:
    run(name, tmp_path / "one", 1, memory, tmp_path, batches=batches, padding=padding)
    run(name, tmp_path / "two", 2, memory, tmp_path, batches=batches, padding=padding)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    other = torch.load(tmp_path / "two.other", weights_only=True)
    plans = [(tmp_path / n / "dnge_plan.json").read_text().split('"cuts"')[1].split("]")[0] for n in ("one", "two")]
    assert plans[0] == plans[1]
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other[key], two[key], rtol=0, atol=0)


@pytest.mark.parametrize("total", [32, 42, 61])
def test_shares_hold_every_example_once_and_some_that_judge(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples_of, "world", lambda: 2)
    batch = {"input_ids": torch.arange(total)[:, None]}
    found: list[int] = []
    for number in range(2):
        monkeypatch.setattr(examples_of, "rank", lambda number=number: number)
        own = own_examples(batch, can_share=True)
        assert own.are_shared and own.batch["input_ids"][:, 0].tolist() == own.numbers.tolist()  # type: ignore[index]
        measured = own.are_measured(own.numbers)
        assert measured.any() and not measured.all() and spread_examples_of(own.numbers).any()
        found += own.numbers.tolist()
    assert sorted(found) == list(range(total))


@pytest.mark.parametrize(("total", "can_share"), [(28, True), (64, False)])
def test_few_examples_and_those_that_cannot_be_shared_are_everybodys(
    total: int, can_share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples_of, "world", lambda: 2)
    own = own_examples(torch.zeros(total, 3), can_share=can_share)
    assert not own.are_shared and len(own) == total


def test_an_answer_counts_where_all_processes_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world", lambda: 2)
    for other, said in ((3.0, 3), (4.0, None)):
        monkeypatch.setattr(processes, "summed", lambda answers, other=other: answers + torch.tensor([0.0, other]))
        assert processes.agreed(3) == said


def test_who_works_alone_sums_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    token = processes._JOINED.set(True)
    assert processes.world() == 2
    with processes.each_alone():
        assert processes.world() == 1 and processes.summed(torch.ones(2)).tolist() == [1, 1]
    assert processes.world() == 2
    processes._JOINED.reset(token)


def test_a_group_of_processes_that_nobody_joined_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may let its first process compress while the others wait elsewhere."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert (processes.rank(), processes.world(), processes.own_share("ab")) == (0, 1, [(0, "a"), (1, "b")])
    assert processes.summed(torch.ones(2)).tolist() == [1, 1]


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that Kubernetes gives a pod; the other one never comes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    setting = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "JOIN_SECONDS", 0.5)


@pytest.mark.usefixtures("one_of_two")
def test_processes_that_do_not_come_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models.make("llama").save_pretrained(tmp_path / "model")
    command = ["score", str(tmp_path / "model"), "--scorer", "magnitude"]
    told = []
    for name in ("", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
        capsys.readouterr()
        assert main(command) == 2
        told.append(capsys.readouterr().err.splitlines()[-1])
    assert all("process 0 of 2, and they did not come together" in line for line in told)
    assert "MASTER_ADDR" in told[1]
    assert main(["report", str(tmp_path / "model")]) == 2  # reads, and waits for nobody
    assert "has no dnge_report.json" in capsys.readouterr().err


@pytest.mark.usefixtures("one_of_two")
def test_a_process_that_waits_for_others_can_be_ended() -> None:
    script = "from dnge_compress.core import processes; print(flush=True)\nwith processes.joined_processes(): pass"
    waiting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert waiting.stdout is not None and waiting.stdout.readline()
    time.sleep(1)
    waiting.terminate()
    assert waiting.wait(20) == -signal.SIGTERM
    waiting.stdout.close()


@pytest.mark.parametrize(
    ("size", "rank", "found"),
    [("2", "1", (1, 2)), ("", "0", None), ("1", "0", None), ("2", "", None), ("2", None, None)],
)
def test_a_launcher_is_known_by_its_environment(
    size: str, rank: str | None, found: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert launcher_world() == found


def test_a_card_is_numbered_among_those_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_rank(9) == 9
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_rank(9) == 1
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(LaunchError, match="LOCAL_RANK is 'first', which is no whole number"):
        local_rank(9)


@pytest.mark.parametrize(("size", "rank", "told"), [("two", "0", "WORLD_SIZE is 'two'"), ("2", "2", "RANK is 2")])
def test_an_environment_that_makes_no_sense_is_told(
    size: str, rank: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(LaunchError, match=told):
        launcher_world()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("fails", [False, True])
def test_one_process_writes_and_the_others_hear_whether_it_failed(
    number: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[float] = []

    def summed(own: torch.Tensor) -> torch.Tensor:
        said.append(float(own))
        return own + float(fails and number == 1)  # what the first process says

    monkeypatch.setattr(processes, "rank", lambda: number)
    monkeypatch.setattr(processes, "summed", summed)
    raised = {(True, 0): OSError, (True, 1): DngeError}.get((fails, number))
    with pytest.raises(raised) if raised else nullcontext(), processes.one_process_writes() as is_mine:
        assert is_mine == (number == 0)
        if fails and is_mine:
            raise OSError("full")
    assert said == [float(fails and number == 0)]


@pytest.mark.slow
def test_the_command_works_under_a_launcher_and_one_process_speaks(tmp_path: Path) -> None:
    models.make("llama").save_pretrained(tmp_path / "model")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "dnge_compress", "compress", tmp_path / "model", "-o", tmp_path / "out", "--json"]
    found = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=300)
    plan = json.loads((tmp_path / "out" / "dnge_plan.json").read_text())
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert json.loads(found.stdout)  # one document, not two
    assert sum(p.numel() for p in small.parameters()) == plan["params_after"]
