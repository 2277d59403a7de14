"""Tensors that lie in files while they are needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from models import make

from dnge_compress import compress, load, save
from dnge_compress.core import memory, paging
from dnge_compress.core.memory import page_out
from dnge_compress.core.paging import Shelf
from dnge_compress.tasks import task

SETTINGS: dict[str, Any] = {"ratio": 0.3, "tokens": 256, "length": 16}


def is_in_a_file(values: torch.Tensor) -> bool:
    """Whether the memory of a tensor is mapped from a file."""
    address = values.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return "/" in line
    raise AssertionError("no such memory")


def test_the_first_tensors_lie_in_memory_and_the_others_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "SMALL_BYTES", 0)
    shelf = Shelf("numbers", memory=4000)
    kept = [shelf.keep(torch.arange(1000.0)) for _ in range(3)]
    assert [is_in_a_file(values) for values in kept] == [False, True, True]
    assert all(torch.equal(values, torch.arange(1000.0)) for values in kept)


def resident_bytes() -> int:
    """Of this process's memory that is mapped from files."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="the system takes no such advice")
def test_what_is_paged_out_leaves_memory_and_keeps_its_values() -> None:
    mapped = paging.paged(torch.arange(1 << 24, dtype=torch.float32), "numbers")
    os.sync()  # what isn't on the disk yet stays
    total = float(mapped.double().sum())
    before = resident_bytes()
    page_out(mapped)
    assert resident_bytes() < before - (1 << 25)
    assert float(mapped.double().sum()) == total
    mapped.add_(1)  # now it is memory of its own
    page_out(mapped)
    assert float(mapped.double().sum()) == total + len(mapped)
    plain = torch.ones(1 << 20)
    page_out(plain[5:])
    assert float(plain.sum()) == len(plain)


def test_a_large_result_of_a_folder_lies_in_files_and_is_saved_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = make("llama")
    model.save_pretrained(tmp_path / "model")
    wanted: Any = compress(tmp_path / "model", "prune/neurons", **SETTINGS)
    monkeypatch.setattr(paging, "SMALL_BYTES", 0)
    monkeypatch.setattr(task, "available_bytes", lambda: 0)
    found: Any = compress(tmp_path / "model", "prune/neurons", **SETTINGS)
    narrower = "model.layers.0.mlp.down_proj.weight"
    assert is_in_a_file(found.get_parameter(narrower))
    assert not is_in_a_file(wanted.get_parameter(narrower))
    save(found, tmp_path / "small")
    again = load(tmp_path / "small").state_dict()
    assert all(torch.equal(again[name], value) for name, value in wanted.state_dict().items())
    found.get_parameter(narrower).data.zero_()  # a mapped weight can be written to


def test_what_lies_in_no_file_is_not_swapped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[object, ...]] = []
    monkeypatch.setattr(memory, "_libc", lambda name: lambda *args: advised.append(args))
    page_out(torch.ones(1 << 20))
    assert not advised
    page_out(paging.paged(torch.ones(1 << 20), "numbers"))
    assert len(advised) == 1


def test_available_memory_ends_at_the_limit_of_any_container_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory().available
    monkeypatch.setattr(memory, "_own_group", lambda: tmp_path / "pod" / "box")
    assert memory.available_bytes() == pytest.approx(free, rel=0.2)  # no limits there
    for folder, limit, used, droppable in (("pod/box", "max", 900, 0), ("pod", "1000", 700, 100)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
        (tmp_path / folder / "memory.current").write_text(f"{used}\n")
        (tmp_path / folder / "memory.stat").write_text(f"anon {used}\ninactive_file {droppable}\n")
    assert memory.available_bytes() == 1000 - 700 + 100
    (tmp_path / "pod" / "memory.current").write_text("2000\n")
    assert memory.available_bytes() == 0
