"""Finished parts of a work: a compress that is stopped anywhere goes on from there, to the same result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make
from safetensors.torch import load_file
from torch import Tensor, nn

from dnge_compress import compress, score
from dnge_compress.core.errors import CheckpointError, DngeError
from dnge_compress.core.parts import BASIS, Parts, kept_parts
from dnge_compress.signals import layer_refit, second_moments

SETTINGS: dict[str, Any] = {"ratio": 0.3, "tokens": 256, "length": 16}
LAYERS = 3  # of the test Llama


class _StoppedError(Exception):
    """What a kill is here."""


class _Stopped(Parts):
    """Parts that are killed before the one of a number is made."""

    left = 0

    def tensors(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        return super().tensors(name, lambda: _or_stop(make))

    def within(self, prefix: str) -> Parts:
        return _Stopped(self.folder, f"{self.prefix}{prefix}.")


def _or_stop(make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    if _Stopped.left == 0:
        raise _StoppedError
    _Stopped.left -= 1
    return make()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("in_turn", "repair", "kinds"),
    [(False, "lstsq", "neuron"), (True, "lstsq", "neuron"), (False, "joint", "neuron"), (False, "lstsq", "layer")],
)
def test_a_work_stopped_before_every_part_in_turn_ends_as_an_unbroken_one(
    in_turn: bool, repair: str, kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS | {"compensate": repair, "kinds": [kinds]}
    if in_turn:
        monkeypatch.setattr(second_moments, "MEMORY_BYTES", 0)
    model = make("llama")
    wanted = weights_of(compress(model, "prune/neurons", **settings))
    parts, stops, found = _Stopped(tmp_path / "work"), 0, None
    while found is None:
        _Stopped.left = 1  # one more part each time
        try:
            found = compress(model, "prune/neurons", work=parts, **settings)
        except _StoppedError:
            stops += 1
    assert stops > (12 if in_turn else 5 if kinds == "neuron" else 3)
    names = {file.name for file in (tmp_path / "work").iterdir()}
    assert sum(name.startswith("cost-of.") for name in names) == (LAYERS if kinds == "layer" else 0)
    assert ("block-0.part.safetensors" in names) is in_turn
    assert ("signals.part.safetensors" in names) is not in_turn
    for name, value in weights_of(found).items():
        assert torch.equal(value, wanted[name]), name


def test_of_plans_that_lose_only_what_they_cost_is_kept(tmp_path: Path) -> None:
    with kept_parts(tmp_path / "work") as parts:
        compress(make("llama"), "prune/default", work=parts, **SETTINGS, compensate="lstsq")
        names = [file.name.split(".") for file in (tmp_path / "work").iterdir()]
        measured = {first for first, *rest in names if rest[0] == "measured"}
        refitted = {first for first, *rest in names if rest[0] == "refit"}
    assert len(measured) > 1 and len(refitted) == 1 and refitted < measured


def test_a_joint_repair_goes_on_with_the_formulas_that_its_parts_were_fitted_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told again from all positions, padding too, another one might come out, or none."""
    model, settings = make("llama"), SETTINGS | {"compensate": "joint"}
    with kept_parts(tmp_path / "work") as parts:
        wanted = weights_of(compress(model, "prune/neurons", work=parts, **settings))
        assert any("formula" in load_file(file) for file in (tmp_path / "work").glob("*joint-fits*"))
        monkeypatch.setattr(layer_refit, "formula_of", lambda *args: None)
        found = weights_of(compress(model, "prune/neurons", work=parts, **settings))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_parts_are_made_once_and_taken_away_at_the_end(tmp_path: Path) -> None:
    made = 0

    def make() -> dict[str, Tensor]:
        nonlocal made
        made += 1
        return {"a": torch.arange(6).view(2, 3)[:, 1:], "b": torch.tensor(2.5, dtype=torch.bfloat16)}

    with kept_parts(tmp_path / "work") as parts:
        parts.begin({"model": "one"})
        for _ in range(2):
            found = parts.within("x").tensors("y", make)
            assert torch.equal(found["a"], make()["a"])
            assert found["b"].dtype == torch.bfloat16
        assert parts.facts("z", lambda: 0.1) == 0.1
        assert parts.facts("z", lambda: 0.2) == 0.1
    assert made == 3  # one of them for the part
    assert not (tmp_path / "work").exists()


def test_parts_of_another_work_are_taken_away_with_a_word(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert parts.begin({"model": "one", "seed": 1}) == ""
    parts.facts("x", lambda: 1)
    assert parts.begin({"model": "one", "seed": 1}) == ""
    assert parts.facts("x", lambda: 2) == 1
    note = parts.begin({"model": "one", "seed": 2})
    assert "seed" in note
    assert "model" not in note.partition("(")[2]
    assert parts.facts("x", lambda: 2) == 2


def test_other_content_of_the_folder_is_refused_or_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something else"):
        Parts(tmp_path).begin({})
    (tmp_path / BASIS).write_text('{"mine": 1}')
    with pytest.raises(CheckpointError, match="something else"):
        Parts(tmp_path).begin({})
    assert (tmp_path / BASIS).read_text() == '{"mine": 1}'
    (tmp_path / BASIS).write_text('{"dnge_parts": {}}')
    with kept_parts(tmp_path) as parts:
        parts.begin({})
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_part_that_was_cut_short_is_named(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.tensors("x", lambda: {"a": torch.ones(100)})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=f"{file.name}.*delete it"):
        parts.tensors("x", lambda: {"a": torch.ones(100)})


def test_parts_stay_when_the_work_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(DngeError, match="stop"), kept_parts(tmp_path / "work") as parts:
        parts.begin({"a": 1})
        raise DngeError("stop")
    assert json.loads((tmp_path / "work" / BASIS).read_text()) == {"dnge_parts": {"a": 1}}


def test_work_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        compress(make("llama"), work=tmp_path / "work", **SETTINGS)


def test_parts_made_on_other_example_inputs_or_scores_are_made_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.Flatten(2), Mean()).eval()
    with kept_parts(tmp_path / "work") as parts:
        for size in (8, 11):
            pictures = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size))
            found = weights_of(compress(model, 0.3, example_inputs=pictures, work=parts))
            wanted = weights_of(compress(model, 0.3, example_inputs=pictures))
            assert all(torch.equal(found[name], wanted[name]) for name in wanted), size
    llama, settings = make("llama"), SETTINGS | {"scorer": "magnitude"}
    rows = [torch.randint(4, 20, (8, 16), generator=torch.Generator().manual_seed(0))]
    scored = score(llama, "prune/neurons", data=rows, **{k: v for k, v in settings.items() if k != "ratio"})
    with kept_parts(tmp_path / "work") as parts:
        for scores in (None, scored):
            found = weights_of(compress(llama, "prune/neurons", scores=scores, work=parts, **settings))
            wanted = weights_of(compress(llama, "prune/neurons", scores=scores, **settings))
            assert all(torch.equal(found[name], wanted[name]) for name in wanted), scores is None


def test_parts_of_another_torch_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, settings = make("llama"), SETTINGS | {"scorer": "magnitude"}
    with kept_parts(tmp_path / "work") as parts:
        compress(llama, "prune/neurons", work=parts, **settings)
        monkeypatch.setattr(torch, "__version__", "2.99.0")
        again: Any = compress(llama, "prune/neurons", work=parts, **settings)
    assert any("were of another work (torch)" in note for note in again.dnge.report.notes)


class Mean(nn.Module):
    """Of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Without it."""
        return x.mean(-1)


def test_parts_that_a_killed_process_left_half_written_go_with_the_others(tmp_path: Path) -> None:
    (tmp_path / f".{BASIS}.4000000.part").touch()
    parts = Parts(tmp_path)
    parts.begin({"seed": 1})
    (tmp_path / ".signals.part.safetensors.4000000.part").touch()
    parts.begin({"seed": 2})
    assert [file.name for file in tmp_path.iterdir()] == [BASIS]
    (tmp_path / ".x.part.json.4000000.part").touch()
    parts.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize("name", ["a/b", "../a", "n" * 300, "é" * 200])
def test_a_part_of_any_name_lies_in_the_folder(name: str, tmp_path: Path) -> None:
    with kept_parts(tmp_path / "work") as parts:
        parts.begin({})
        for value in (1.0, 2.0):
            for other, wanted in ((name, 1.0), (f"{name}.", 5.0)):
                found = parts.tensors(other, lambda wanted=wanted, value=value: {"a": torch.tensor(wanted * value)})
                assert float(found["a"]) == wanted
        assert len(list((tmp_path / "work").iterdir())) == 3
    assert list(tmp_path.iterdir()) == []
