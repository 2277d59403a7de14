"""Small CNNs trained together, and reading how good networks are from their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_cnns
import torch
from accuracy_networks import FEATURES, Herd, Subjects, readable, splits, zoo_subjects
from accuracy_readers import network_encoder
from accuracy_walks import walked
from accuracy_zoo import shortened
from grouped_training import CONVOLUTIONS, draw, train_together
from small_cnns import PART, CnnSet, about, accuracy_of, build_set, graph, photographs
from torch import Tensor

from dnge_compress.core.errors import CheckpointError, DataError
from dnge_compress.zoo import resumable as parts
from dnge_compress.zoo.blueprint import blueprints
from dnge_compress.zoo.data_root import DataRoot, Split
from dnge_compress.zoo.images import Images

DATA_ROOT = DataRoot(Path(), Path())
ABOUT = about(PART + 2, kept=(1, 3), count=70)


def noise(name: str, split: Split, *, data_root: DataRoot) -> Images:
    chance = np.random.default_rng(len(split))
    pixels = chance.integers(0, 256, (80, 3, 32, 32), dtype=np.uint8)
    return Images(
        pixels=pixels, labels=torch.from_numpy(chance.integers(0, 10, 80)), mean=(0.5,) * 3, deviation=(0.25,) * 3
    )


def one_by_one(jobs: int, action: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    return (action(*task) for task in tasks)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(small_cnns, "images", noise)
    monkeypatch.setattr(parts, "each_done", one_by_one)
    return monkeypatch


def test_a_set_that_was_stopped_goes_on_and_comes_out_the_same(quick: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = build_set(ABOUT, tmp_path / "whole", data_root=DATA_ROOT)
    quick.setattr(parts, "each_done", lambda jobs, action, tasks: (stopped(action, task) for task in tasks[:1]))
    with pytest.raises(KeyboardInterrupt):
        build_set(ABOUT, tmp_path / "broken", data_root=DATA_ROOT)
    done: list[tuple[Any, ...]] = []
    quick.setattr(parts, "each_done", lambda jobs, action, tasks: (done.append(t) or action(*t) for t in tasks))
    again = build_set(ABOUT, tmp_path / "broken", data_root=DATA_ROOT)
    assert len(done) == 1 and len(again) == len(whole) == 2 * (PART + 2)
    assert all(torch.equal(again.stack[name], values) for name, values in whole.stack.items())
    assert torch.equal(again.accuracy, whole.accuracy) and torch.equal(again.run, whole.run)
    assert [f.name for f in tmp_path.glob("broken*")] == ["broken"]


def stopped(action: Callable[..., Any], task: tuple[Any, ...]) -> float:
    action(*task)
    raise KeyboardInterrupt


def test_the_accuracy_recorded_is_that_of_the_rebuilt_module(quick: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build_set(ABOUT, tmp_path / "set", data_root=DATA_ROOT)
    found = CnnSet.load(tmp_path / "set")
    held_out = photographs("held-out", ABOUT["images"], data_root=DATA_ROOT)
    for i in (0, len(found) - 1):  # one with ReLU, one with tanh
        assert accuracy_of(found.module(i), *held_out) == pytest.approx(float(found.accuracy[i]), abs=1e-7)
    assert found.is_relu[0] and not found.is_relu[-1]


def test_each_run_learns_the_image_that_it_was_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(60, 1, 32, 32, generator=generator), torch.randint(10, (60,), generator=generator)
    hyper = draw(3, generator) | {"dropout": torch.zeros(3), "share": torch.full((3,), 1e-3)}  # one image each
    hyper["learning_rate"] = torch.full((3,), 0.01)
    steps = dict(train_together((x, labels), hyper, activation="tanh", kept=(1, 40), generator=generator))
    for run in range(3):
        nets = [CnnSet({k: v[run : run + 1] for k, v in steps[s].items()}, torch.zeros(1), torch.zeros(1),
                       torch.zeros(1, dtype=torch.bool), torch.zeros(1), {}, {}).module(0) for s in steps]  # fmt: skip
        losses = [torch.nn.functional.cross_entropy(net(x), labels, reduction="none") for net in nets]
        assert float((losses[1] - losses[0]).min().detach()) < 0  # its own image, whichever that is, is learned


def test_an_embedding_does_not_change_when_channels_are_permuted(quick: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = build_set(about(2, kept=(2,), count=70), tmp_path / "set", data_root=DATA_ROOT)
    torch.manual_seed(0)
    encoder = network_encoder(1, hidden=12, embedding=8).double()
    stack = {name: values.double() for name, values in found.stack.items()}
    before, after = (encoder.embed(graph(), s, biases(s)) for s in (stack, permuted(stack)))
    assert (before - after).abs().max() < 1e-10
    assert (before[0] - before[1]).abs().max() > 1e-3


def test_an_untrained_walk_tells_networks_apart_whose_weights_have_the_same_statistics(
    quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Equal columns for channels in another order, others where a layer reads the wrong channels."""
    found = build_set(about(2, kept=(2,), count=70), tmp_path / "set", data_root=DATA_ROOT)
    crossed = dict(found.stack)
    crossed["head.weight"] = crossed["head.weight"].flip(2)
    before, after, other = (
        walked(subjects(s), torch.arange(2), seed=3) for s in (found.stack, permuted(found.stack), crossed)
    )
    assert before.shape == (2, 192) and (before - after).abs().max() < 1e-4
    assert (before - other).abs().max() > 1e-3


def test_a_short_zoo_has_the_runs_of_the_zoo_on_a_share_of_their_schedules() -> None:
    plan = next(p for p in blueprints(30, 0) if p.family == "vit")
    short = shortened(plan, 0.15)
    assert short.steps == int(0.15 * plan.steps) and short.stop == int(0.15 * plan.stop)
    assert replace(short, steps=plan.steps, stop=plan.stop) == plan


def test_a_zoo_that_was_not_made_is_named_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="zoo' holds no mlp or cnn; `dnge zoo` makes them, or accuracy_zoo.py"):
        zoo_subjects(tmp_path / "zoo", ("mlp", "cnn"))


def subjects(stack: dict[str, Tensor]) -> Subjects:
    """Two small CNNs that show their units' biases alone."""
    shown = {name: torch.nn.functional.pad(values, (0, FEATURES - 1)) for name, values in biases(stack).items()}
    shown["classes"] = torch.nn.functional.pad(stack["head.bias"][..., None], (0, FEATURES - 1))
    herd = Herd(readable(graph()), stack, shown, torch.arange(2))
    return Subjects((herd,), torch.rand(2), torch.arange(2), torch.zeros(2), {})


def biases(stack: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"channels.{i}": stack[f"{name}.bias"][..., None] for i, name in enumerate(CONVOLUTIONS)}


def permuted(stack: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same functions with all channels in another order."""
    found = dict(stack)
    for name, reader in zip(CONVOLUTIONS, (*CONVOLUTIONS[1:], "head"), strict=True):
        order = torch.randperm(found[f"{name}.bias"].shape[1])
        for leaf in ("weight", "bias"):
            found[f"{name}.{leaf}"] = found[f"{name}.{leaf}"][:, order]
        found[f"{reader}.weight"] = found[f"{reader}.weight"][:, :, order]
    return found


def test_another_file_or_another_set_gives_a_clear_error(quick: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no set")
    with pytest.raises(CheckpointError, match="is no set of small CNNs.*make one with"):
        CnnSet.load(tmp_path / "text")
    build_set(about(2, kept=(1,), count=70), tmp_path / "set", data_root=DATA_ROOT)
    with pytest.raises(CheckpointError, match="holds another set"):
        build_set(about(3, kept=(1,), count=70), tmp_path / "set", data_root=DATA_ROOT)
    with pytest.raises(DataError, match="ascending steps"):
        about(2, kept=(3, 1))


def test_splits_keep_the_networks_of_a_run_together() -> None:
    run = torch.arange(40).repeat_interleave(3)
    found = splits(run, seed=1)
    assert sorted(torch.cat([judged for _, _, judged in found]).tolist()) == list(range(120))
    for groups in found:
        runs = [set(run[group].tolist()) for group in groups]
        assert all(runs) and not (runs[0] & runs[1] or runs[0] & runs[2] or runs[1] & runs[2])
