"""Models that accelerate has spread over devices: compressed where they lie, and spread as before afterwards.

On the CPU hooks are forced; two devices are simulated (tests/cards.py), and with `make test-gpu` they are two cards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import test_vocabulary
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook
from cards import simulated_cards
from torch import Tensor, nn

from dnge_compress import compress, open_model, save, trim_vocabulary
from dnge_compress.signals import moments, second_moments
from dnge_compress.signals.obs import Consumer, removal_costs
from dnge_compress.surgery.placement import is_spread

FIRST = ("model.embed_tokens", "lm_head", "model.rotary_emb", "model.layers.0")  # embedding and head are tied
SECOND = ("model.layers.1", "model.layers.2", "model.norm")
QUICK = {"scorer": "obs", "compensate": "joint"}


@pytest.fixture(params=["simulated", pytest.param("cards", marks=pytest.mark.gpu)])
def two(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The names of two devices."""
    if request.param == "simulated":
        with simulated_cards():
            yield "cuda:0", "cuda:1"
        return
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    yield "cuda:0", "cuda:1"


def spread(first: str, second: str) -> Any:
    """A Llama whose first block lies on one device, and the others on another."""
    model: Any = models.make("llama")
    places = {**dict.fromkeys(FIRST, first), **dict.fromkeys(SECOND, second)}
    return dispatch_model(model, places, skip_keys=model._skip_keys_device_placement, force_hooks=True)


def texts(padded: bool = False) -> list[dict[str, Tensor]]:
    """Two batches of random tokens, with padding or without."""
    ids = torch.randint(4, models.VOCABULARY, (2, 6, 11), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids[0])
    mask[::2, 7:] = 0 if padded else 1
    return [{"input_ids": batch, "attention_mask": mask} for batch in ids]


def devices_of(model: nn.Module) -> dict[str, str]:
    return {name: str(p.device) for name, p in model.named_parameters()}


def assert_is_dispatched(model: Any, other: Any) -> None:
    """Whether a model's hooks are its own, and those of `other` still that one's."""
    for one in (model, other):
        assert is_spread(one) and one.forward.args == (one,) and one.to.__wrapped__.__self__ is one
    hooked = [m for m in model.modules() if isinstance(vars(m).get("_hf_hook"), AlignDevicesHook)]
    assert all(m.forward.args == (m,) and m._old_forward.__self__ is m for m in hooked)
    assert len(hooked) == sum(1 for m in model.modules() if "_hf_hook" in vars(m)) > 10


def assert_same(small: Any, wanted: nn.Module, exact: bool) -> None:
    """Whether a result on several devices is the one of the CPU: to the last bit where devices are simulated."""
    assert small.dnge.plan.cuts == wanted.dnge.plan.cuts
    bounds = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-2, "atol": 1e-2}
    found = small.state_dict()
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found[name].cpu(), value, **bounds)


def test_hooks_on_one_device_stay_and_the_smaller_model_answers_by_its_own() -> None:
    model = spread("cpu", "cpu")
    small: Any = compress(model, "prune/layers", ratio=0.3, data=texts(), **QUICK)
    assert_is_dispatched(small, model)
    gone = next(i for i in range(3) if i not in small.dnge.plan.cuts[0].keep)
    assert small.hf_device_map.keys() == model.hf_device_map.keys() - {"model.layers.2"}
    assert gone in range(3) and len(small.model.layers) == 2
    plain: Any = compress(models.make("llama"), "prune/layers", ratio=0.3, data=texts(), **QUICK)
    inputs = models.example_inputs("llama")
    assert torch.equal(models.outputs(small, inputs), models.outputs(plain, inputs))


def test_in_place_the_hooks_call_the_object_that_was_given() -> None:
    model = spread("cpu", "cpu")
    small: Any = compress(model, "prune/neurons", ratio=0.4, data=texts(), inplace=True, **QUICK)
    assert small is model
    assert_is_dispatched(small, small)
    before = models.outputs(small, models.example_inputs("llama"))
    small.model.norm.weight.data.zero_()
    assert not torch.equal(models.outputs(small, models.example_inputs("llama")), before)


@pytest.mark.parametrize("memory", [second_moments.MEMORY_BYTES, 0])
def test_blocks_on_two_devices_give_the_result_of_one(
    two: tuple[str, str], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the line: signals at once or block by block, costs, one-shot, side-by-side and joint refits."""
    monkeypatch.setattr(second_moments, "MEMORY_BYTES", memory)
    if not memory:
        monkeypatch.setattr(moments._Task, "whole", None)  # blocks pass one at a time, or it fails
    recipe: dict[str, Any] = {"ratio": 0.4, "kinds": ["neuron", "head", "layer"], "data": texts(padded=True), **QUICK}
    model = spread(*two)
    inputs = {name: t.to(two[0]) for name, t in dict(models.example_inputs("llama")).items()}
    answers, places = models.outputs(model, inputs), devices_of(model)
    small: Any = compress(model, **recipe)
    assert torch.equal(models.outputs(model, inputs), answers) and devices_of(model) == places
    assert_is_dispatched(small, model)
    assert set(devices_of(small).values()) == set(two) and set(small.hf_device_map.values()) == set(two)
    assert models.outputs(small, inputs).device == torch.device(two[0])
    assert_same(small, compress(models.make("llama"), **recipe), exact=torch.cuda.device_count() < 2)


def test_a_spread_result_is_saved_and_read_back(two: tuple[str, str], tmp_path: Path) -> None:
    small: Any = compress(spread(*two), "prune/neurons", ratio=0.4, data=texts(), compensate="none", scorer="obs")
    save(small, tmp_path / "out")
    plain: Any = type(small).from_pretrained(tmp_path / "out")
    for name, value in small.state_dict().items():
        assert torch.equal(value.cpu(), plain.state_dict()[name])


def test_a_smaller_vocabulary_keeps_hooks_and_ties(tmp_path: Path) -> None:
    folder = test_vocabulary.base("llama, BPE that falls back to bytes", tmp_path / "base")
    model: Any = dispatch_model(open_model(folder), {"": "cpu"}, force_hooks=True)
    small: Any = trim_vocabulary(model, test_vocabulary.CORPUS)
    assert_is_dispatched(small, model)
    assert small.lm_head.weight is small.model.embed_tokens.weight and small.hf_device_map == {"": "cpu"}
    ids = torch.arange(12)[None]
    plain = trim_vocabulary(str(folder), test_vocabulary.CORPUS)
    assert torch.equal(test_vocabulary.answers(small, ids), test_vocabulary.answers(plain, ids))


def test_consumers_of_one_space_may_lie_on_several_devices(two: tuple[str, str]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator)
    one, other = (
        Consumer(torch.randn(d, 6, generator=generator), rows.T @ rows / 40, torch.rand(d, generator=generator))
        for d in (4, 5)
    )
    wanted = removal_costs([one, other], 6, 0.01)
    found = removal_costs([one.on(torch.device(two[0])), other.on(torch.device(two[1]))], 6, 0.01)
    torch.testing.assert_close(found, wanted)


def test_the_simulation_refuses_to_mix_devices() -> None:
    """What the tests above rest on."""
    with simulated_cards():
        first, second = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")
        for other in (second, torch.ones(3)):
            with pytest.raises(RuntimeError, match="same device"):
                first + other
            with pytest.raises(RuntimeError, match="same device"):
                torch.stack([first, other])
        with pytest.raises(RuntimeError, match="generator"):
            first.normal_(generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            first.numpy()
        assert (first[1:].view(2, 1).to(second) + second[1:]).device == torch.device("cuda:1")
        assert nn.Linear(3, 2).to("cuda:1")(second).device == torch.device("cuda:1")
        leaf = torch.ones(3, requires_grad=True)
        (leaf.to("cuda:0") * first).sum().backward()
        assert leaf.grad is not None and leaf.grad.device == torch.device("cpu")
    assert first.device == torch.device("cpu")
