"""What is true on the CPU is true on a card.

Every body runs three times: on the CPU, on a card that is simulated there (tests/cards.py), so that it is proved to be
right without one, and marked `gpu` on a real one (`make test-gpu`). On the simulated card numbers are those of the CPU,
on a real one they are near.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import models
import pytest
import size
import test_fit
import test_processes
import torch
from cards import simulated_cards
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dnge_compress import apply, plan
from dnge_compress.cli.main import main
from dnge_compress.inr import InrEncoder, InrEncoderConfig, Siren
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.zoo.pretrain.fit import batched_losses

NAMES = ["llama", "bert_mlm", "gpt2", "resnet_basic"]
KEPT_ALIKE = 0.9  # of the units that a plan keeps; rounding decides between those that cost nearly the same
TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 1e-1}  # of outputs, relative: fits take their products in TF32
CARD_BYTES = 24 << 30  # of the card that an 8B model must fit on
SIMULATED = "simulated"


@pytest.fixture(params=["cpu", SIMULATED, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the device that a body runs on."""
    if request.param == SIMULATED:
        with simulated_cards():
            yield "cuda:0"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a card")
    yield "cuda:0" if request.param == "cuda" else "cpu"


def is_real(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def inputs_for(name: str) -> list[dict[str, Tensor]]:
    """Two batches of calibration inputs."""
    generator = torch.Generator().manual_seed(3)
    if "input_ids" in models.example_inputs(name):
        return [{"input_ids": torch.randint(4, models.VOCABULARY, (6, 11), generator=generator)} for _ in range(2)]
    return [{"pixel_values": torch.randn(6, 3, 32, 32, generator=generator)} for _ in range(2)]


def settings(name: str) -> dict[str, Any]:
    return {"data": inputs_for(name), "scorer": "obs", "compensate": "joint"}


def model_of(name: str, dtype: torch.dtype) -> nn.Module:
    return models.make(name).to(dtype)


@cache
def on_cpu(name: str, dtype: torch.dtype) -> tuple[PrunePlan, nn.Module]:
    """The plan on the CPU, and the model under it."""
    found = plan(model_of(name, dtype), "prune/neurons", ratio=0.4, **settings(name))
    return found, apply(found, model_of(name, dtype), data=inputs_for(name))


def answers(model: nn.Module, name: str, device: str) -> Tensor:
    """A model's outputs, on the CPU."""
    dtype = next(model.parameters()).dtype
    given = {
        key: t.to(device, dtype if t.is_floating_point() else t.dtype)
        for key, t in dict(models.example_inputs(name)).items()
    }
    return models.outputs(model, given).cpu()


def off_by(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in NAMES), ("llama", torch.bfloat16)], ids=str
)
def test_compress_gives_the_plan_of_the_cpu_and_weights_near_its_own(
    name: str, dtype: torch.dtype, device: str
) -> None:
    wanted, reference = on_cpu(name, dtype)
    model = model_of(name, dtype).to(device)
    found = plan(model, "prune/neurons", ratio=0.4, **settings(name))
    for cut, other in zip(wanted.cuts, found.cuts, strict=True):
        assert cut.space == other.space and len(cut.keep) == len(other.keep)
        assert len({*cut.keep} & {*other.keep}) >= KEPT_ALIKE * len(cut.keep)
    small = apply(wanted, model, data=inputs_for(name))
    assert {str(t.device) for t in (*small.parameters(), *small.buffers())} == {device}
    assert {p.dtype for p in small.parameters()} == {dtype}
    off = off_by(answers(small, name, device), answers(reference, name, "cpu"))
    masked = off_by(answers(model, name, device), answers(reference, name, "cpu"))
    assert off <= TOLERANCES[dtype] < masked  # and the cut itself changes more than that
    if dtype == torch.float32 and not is_real(device):
        assert found.cuts == wanted.cuts and off <= 1e-6


def test_a_folder_goes_to_the_card_and_its_own_model_becomes_the_smaller_one(device: str, tmp_path: Path) -> None:
    """`dnge compress --device` works in place on what it has opened."""
    models.make("llama").save_pretrained(tmp_path / "model")
    command = ["compress", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--device", device, "--ratio", "0.3"]
    command += ["--recipe", "prune/neurons", "--set", "scorer=obs", "--set", "calibration.tokens=64"]
    assert main([*command, "--set", "calibration.length=16"]) == 0
    small: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert small.config.intermediate_size == 28 and torch.isfinite(answers(small, "llama", "cpu")).all()


def test_the_encoder_of_implicit_networks_reads_there_what_it_reads_here(device: str) -> None:
    siren = Siren((2, 7, 5, 3))
    torch.manual_seed(0)
    encoder = InrEncoder(InrEncoderConfig(outputs=3, hidden=16, output_hidden=16, embedding=12, probes=4)).eval()
    stack = {n: 3 * v for n, v in siren.initial(4, torch.Generator().manual_seed(0)).items()}
    with torch.no_grad():
        wanted = encoder(stack, siren)
        found = encoder.to(device)({name: values.to(device) for name, values in stack.items()}, siren)
    assert found.device == torch.device(device)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


def test_a_step_of_pretraining_moves_the_encoder_as_on_the_cpu(device: str) -> None:
    """The step of `dnge pretrain`, which itself runs on the CPU."""
    example = test_fit.example("llama")

    def moved(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in values.items()}

    there = replace(
        example,
        weights=moved(example.weights),
        features=moved(example.features),
        obs_costs=moved(example.obs_costs),
        targets=moved(example.targets),
    )
    gradients = []
    for one, where in ((example, "cpu"), (there, device)):
        torch.manual_seed(0)
        encoder = test_fit.small().train()
        params = {n: p.detach()[None].to(where).requires_grad_() for n, p in encoder.named_parameters()}
        batched_losses(encoder.to(where), params, one, noise=0.0).sum().backward()
        gradients.append({n: p.grad.cpu() for n, p in params.items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any(g.abs().sum() for g in gradients[0].values())
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_two_processes_on_two_cards_give_the_plan_and_weights_of_one(tmp_path: Path) -> None:
    """By nccl; the same script runs by gloo in tests/test_processes.py."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    for processes in (1, 2):
        test_processes.run("llama", tmp_path / str(processes), processes, 1 << 30, tmp_path, device="cuda")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("shape", "where"),
    [pytest.param("tiny", "cpu"), pytest.param("8B", "cuda", marks=[pytest.mark.gpu, pytest.mark.slow])],
)
def test_a_large_model_goes_from_folder_to_folder(
    shape: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama-3.1-8B's shape with random weights in bfloat16, 16 GB, on one card of 24; neurons, heads and layers."""
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a card")
    tiny = size.llama(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4)
    monkeypatch.setattr(size, "FOLDER", tmp_path)
    monkeypatch.setitem(size.SHAPES, "tiny", tiny)
    folder, out, tokens = size.made(shape), tmp_path / "out", 64 if shape == "tiny" else 2048
    command = ["compress", str(folder), "-o", str(out), "--device", where, "--set", f"calibration.tokens={tokens}"]
    assert main([*command, "--set", "calibration.length=32", "--json"]) == 0
    capsys.readouterr()
    before, after = (sum(f.stat().st_size for f in at.glob("*.safetensors")) for at in (folder, out))
    assert after < 0.95 * before
    if where == "cuda":
        assert torch.cuda.max_memory_allocated() < CARD_BYTES
