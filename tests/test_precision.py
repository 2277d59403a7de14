"""Products of half-precision models where the CPU has no instructions for them."""

from __future__ import annotations

import models
import pytest
import torch
from torch import nn

from dnge_compress.core import precision
from dnge_compress.core.precision import fast_float32_products, has_bfloat16, widened_products
from dnge_compress.signals.inference import call, inference_mode_of


@pytest.fixture
def _without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_products_of", lambda dtype: dtype == torch.float32)


@pytest.mark.usefixtures("_without_instructions")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_taken_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    layer, x = nn.Linear(300, 5).to(dtype), torch.randn(4, 300).to(dtype)
    with widened_products(layer):
        found = layer(x)
    wanted = nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float()).to(dtype)
    assert found.dtype == dtype and torch.equal(found, wanted)


@pytest.mark.usefixtures("_without_instructions")
@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "cnn"])
def test_every_product_of_a_model_is_widened_there_and_back(name: str) -> None:
    seen: list[torch.dtype] = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if any(part in str(func) for part in ("mm", "conv", "attention")):
                seen.extend(a.dtype for a in args if isinstance(a, torch.Tensor))
            return func(*args, **(kwargs or {}))

    model = models.make(name).bfloat16()
    inputs = models.example_inputs(name)
    inputs = inputs if isinstance(inputs, dict) else inputs.bfloat16()
    if isinstance(inputs, dict):
        inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    with inference_mode_of(model), torch.enable_grad(), Watched():
        for p in model.parameters():
            p.requires_grad_(True)
        call(model, inputs).float().sum().backward()
    assert seen and set(seen) == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}


@pytest.mark.usefixtures("_without_instructions")
def test_a_product_is_written_where_it_is_asked_for() -> None:
    a, b = torch.ones(2, 3).bfloat16(), torch.ones(3, 2).bfloat16()
    out = torch.zeros(2, 2).bfloat16()
    with widened_products(nn.Linear(3, 2).bfloat16()):
        torch.mm(a, b, out=out)
    assert torch.equal(out, torch.full((2, 2), 3.0).bfloat16())


def test_nothing_is_widened_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    half, whole = nn.Linear(3, 2).bfloat16(), nn.Linear(3, 2)
    monkeypatch.setattr(precision, "has_products_of", lambda dtype: True)
    with widened_products(half) as mode:
        assert mode is None
    monkeypatch.setattr(precision, "has_products_of", lambda dtype: False)
    with widened_products(whole) as mode:  # asked of halves alone
        assert mode is None
    with widened_products(half) as mode:
        assert mode is not None


def test_fast_products_are_near_and_end_with_the_block() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a @ b
    with pytest.raises(RuntimeError, match="stop"), fast_float32_products():
        near = a @ b
        raise RuntimeError("stop")
    assert (near - exact).norm() < 0.01 * exact.norm()
    if has_bfloat16() and hasattr(torch.backends.mkldnn, "matmul"):
        assert not torch.equal(near, exact)
    assert torch.equal(a @ b, exact)


def test_products_that_were_asked_to_be_exact_stay_so() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact, owner = a @ b, getattr(torch.backends.mkldnn, "matmul", None)
    if owner is None:
        pytest.skip("this torch has no such setting")
    owner.fp32_precision = "ieee"
    try:
        with fast_float32_products():
            assert torch.equal(a @ b, exact)
        assert owner.fp32_precision == "ieee"
    finally:
        owner.fp32_precision = "none"
