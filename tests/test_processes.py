"""Two processes give one process's plan and weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dnge_compress.core import processes

SCRIPT = """
import sys
import torch
import models
from dnge_compress import compress, save
from dnge_compress.core.processes import joined_processes, rank
from dnge_compress.signals import second_moments
second_moments.MEMORY_BYTES = int(sys.argv[3])
with joined_processes():
    generator = torch.Generator().manual_seed(3)
    data = None
    if sys.argv[1] == "llama":
        data = [{"input_ids": torch.randint(4, 61, (3, 11), generator=generator)} for _ in range(5)]
    example = None if models.MODELS[sys.argv[1]].family else models.example_inputs(sys.argv[1])
    small = compress(models.make(sys.argv[1]), ratio=0.3, data=data, example_inputs=example)
    save(small, sys.argv[2])
    if rank() == 1:
        torch.save(small.state_dict(), sys.argv[2] + ".other")
"""


def run(name: str, out: Path, processes: int, memory: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), script, name, out, memory]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=300)


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("llama", 0),  # block by block
        pytest.param("llama", 1 << 30, marks=pytest.mark.slow),
        pytest.param("cnn", 1 << 30, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_plan_and_the_weights_of_one(name: str, memory: int, tmp_path: Path) -> None:
    run(name, tmp_path / "one", 1, memory, tmp_path)
    run(name, tmp_path / "two", 2, memory, tmp_path)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    other = torch.load(tmp_path / "two.other", weights_only=True)
    plans = [(tmp_path / n / "dnge_plan.json").read_text().split('"cuts"')[1].split("]")[0] for n in ("one", "two")]
    assert plans[0] == plans[1]
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-5)


def test_a_group_of_processes_that_nobody_joined_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may let its first process compress while the others wait elsewhere."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert (processes.rank(), processes.world(), processes.own_share("ab")) == (0, 1, [(0, "a"), (1, "b")])
    assert processes.summed(torch.ones(2)).tolist() == [1, 1]


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
