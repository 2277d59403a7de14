"""OBS costs against plain least squares in float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from dnge_compress.signals.obs import Consumer, damping, factor, features_of, refit, removal_costs

RIDGE = 0.01
SAMPLES = 200


def activations(features: int, seed: int = 0) -> Tensor:
    """Correlated rows `[SAMPLES, F]` of unequal scale, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    rows = torch.randn(SAMPLES, features, generator=generator, dtype=torch.float64)
    return rows @ mixing * torch.linspace(0.3, 2.0, features, dtype=torch.float64)


def consumer(features: int, outputs: int = 5, seed: int = 0) -> Consumer:
    """A consumer of `activations`, with unequal importance of its outputs."""
    generator = torch.Generator().manual_seed(seed + 1)
    a = activations(features, seed)
    weight = torch.randn(outputs, features, generator=generator, dtype=torch.float64)
    return Consumer(weight, a.T @ a / SAMPLES, torch.linspace(0.5, 3.0, outputs, dtype=torch.float64))


def least_squares(r: Consumer, keep: Tensor, a: Tensor) -> Tensor:
    """min_V E‖Va_K − Wa‖² + λ‖V − W‖² over all F columns with V zero outside `keep`, by torch.linalg.lstsq `[D, K]`."""
    lam = damping(r.moments, RIDGE)
    features = a.shape[1]
    stacked = torch.cat([a / SAMPLES**0.5, lam**0.5 * torch.eye(features, dtype=a.dtype)])
    return torch.linalg.lstsq(stacked[:, keep], stacked @ r.weight.T).solution.T


def residual(r: Consumer, keep: Tensor, a: Tensor) -> float:
    """½ Σ_d S_d · (damped squared error of output d) after that fit."""
    lam = damping(r.moments, RIDGE)
    damped = r.moments + lam * torch.eye(len(r.moments), dtype=a.dtype)
    full = torch.zeros_like(r.weight)
    full[:, keep] = least_squares(r, keep, a)
    error = full - r.weight
    return float(0.5 * (r.importance * torch.einsum("df,fg,dg->d", error, damped, error)).sum())


def without(units: list[int], total: int, width: int = 1) -> Tensor:
    """Features of the units that stay."""
    return features_of(torch.tensor([u for u in range(total) if u not in units], dtype=torch.long), width)


@pytest.mark.parametrize("width", [1, 3])
def test_the_cheapest_unit_costs_the_least_squares_residual_of_removing_it(width: int) -> None:
    units = 6
    r, a = consumer(units * width), activations(units * width)
    brute = torch.tensor([residual(r, without([u], units, width), a) for u in range(units)])
    costs = removal_costs([r], units, RIDGE)
    assert costs.argmin() == brute.argmin()
    assert float(costs.min()) == pytest.approx(float(brute.min()), rel=1e-3)


def test_two_units_cost_the_residual_of_each_alone_or_of_both() -> None:
    r, a = consumer(2), activations(2)
    costs = removal_costs([r], 2, RIDGE)
    first = int(costs.argmin())
    assert float(costs[first]) == pytest.approx(residual(r, without([first], 2), a), rel=1e-3)
    # The survivor pays for what is left of both: everything, less what the first has paid already.
    both = residual(r, torch.tensor([], dtype=torch.long), a)
    assert float(costs.sum()) == pytest.approx(both, rel=1e-3)


def test_several_readers_add_up() -> None:
    units = 6
    r1, r2 = consumer(units, 5), consumer(2 * units, 3, seed=4)
    a1, a2 = activations(units), activations(2 * units, 4)
    brute = [residual(r1, without([u], units), a1) + residual(r2, without([u], units, 2), a2) for u in range(units)]
    costs = removal_costs([r1, r2], units, RIDGE)
    assert costs.argmin() == torch.tensor(brute).argmin()
    assert float(costs.min()) == pytest.approx(min(brute), rel=1e-3)


def test_costs_along_the_elimination_sum_to_the_joint_residual() -> None:
    """Each unit pays for what the earlier ones left, so where costs rise by themselves their sum is the joint cost."""
    a, r = activations(7), consumer(7)
    r = Consumer(r.weight * 6.0 ** torch.arange(7), r.moments, r.importance)
    costs = removal_costs([r], 7, RIDGE)
    order = costs.argsort()
    assert (costs[order].diff() > 0).all()
    joint = torch.tensor([residual(r, without(order[:n].tolist(), 7), a) for n in range(1, 8)], dtype=torch.float64)
    torch.testing.assert_close(costs[order].double().cumsum(0), joint, rtol=2e-3, atol=1e-5)


def test_costs_never_fall_along_the_elimination() -> None:
    """Removing the cheapest units one at a time, by brute force: the next one's cost is the running maximum."""
    units, gone, highest = 9, [], 0.0
    a, r = activations(units), consumer(units)
    costs = removal_costs([r], units, RIDGE)
    while len(gone) < units:
        paid = residual(r, without(gone, units), a)
        left = [u for u in range(units) if u not in gone]
        joint = {u: residual(r, without([*gone, u], units), a) - paid for u in left}
        cheapest = min(left, key=joint.__getitem__)
        highest = max(highest, joint[cheapest])
        assert float(costs[cheapest]) == pytest.approx(highest, rel=5e-3)
        gone.append(cheapest)


@pytest.mark.parametrize(("units", "width"), [(300, 1), (20, 4), (1, 3)])
def test_costs_are_finite_and_never_negative(units: int, width: int) -> None:
    costs = removal_costs([consumer(units * width)], units, RIDGE)
    assert costs.shape == (units,) and costs.dtype == torch.float32
    assert torch.isfinite(costs).all() and (costs >= 0).all()


def test_a_unit_read_with_zero_weight_and_uncorrelated_costs_nothing_and_goes_first() -> None:
    r = consumer(6)
    weight, moments = r.weight.clone(), r.moments.clone()
    weight[:, 4] = 0
    moments[4, :4] = moments[:4, 4] = moments[4, 5] = moments[5, 4] = 0
    costs = removal_costs([Consumer(weight, moments, r.importance)], 6, RIDGE)
    assert costs.argmin() == 4 and float(costs[4]) == pytest.approx(0, abs=1e-6)


def test_a_duplicated_unit_is_cheap_once_and_its_twin_then_costs_its_full_price() -> None:
    a = activations(5)
    a[:, 3] = a[:, 0]
    weight = consumer(5).weight
    costs = removal_costs([Consumer(weight, a.T @ a / SAMPLES, torch.ones(5, dtype=torch.float64))], 5, 1e-5)
    twins = costs[[0, 3]].sort().values
    assert float(twins[0]) < 1e-3 * float(twins[1])


def test_costs_follow_units_under_permutation() -> None:
    r = consumer(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    shuffled = Consumer(r.weight[:, order], r.moments[order][:, order], r.importance)
    torch.testing.assert_close(
        removal_costs([shuffled], 40, RIDGE), removal_costs([r], 40, RIDGE)[order], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("width", [1, 3])
def test_refit_equals_torchs_least_squares_with_ridge(width: int) -> None:
    """The ridge is on the kept columns' change: W_K + W_P C_PK (C_KK + λI)⁻¹."""
    units = 6
    a, r = activations(units * width), consumer(units * width)
    keep = without([1, 4], units, width)
    lam = damping(r.moments, RIDGE)
    gone = torch.tensor([f for f in range(units * width) if f not in keep.tolist()])
    stacked = torch.cat([a[:, keep] / SAMPLES**0.5, lam**0.5 * torch.eye(len(keep), dtype=a.dtype)])
    missing = torch.cat([a[:, gone] @ r.weight[:, gone].T / SAMPLES**0.5, torch.zeros(len(keep), 5, dtype=a.dtype)])
    expected = r.weight[:, keep] + torch.linalg.lstsq(stacked, missing).solution.T
    torch.testing.assert_close(refit(r.weight, r.moments, keep, RIDGE), expected)


def test_refitting_with_all_features_kept_is_exact() -> None:
    r = consumer(6)
    assert torch.equal(refit(r.weight, r.moments, torch.arange(6), RIDGE), r.weight)


def test_refitting_works_in_float64_whatever_comes_in() -> None:
    r = consumer(6)
    keep = torch.tensor([0, 2, 3])
    exact = refit(r.weight, r.moments, keep, RIDGE)
    found = refit(r.weight.float(), r.moments.float(), keep, RIDGE)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_refitting_changes_neither_weight_nor_moments() -> None:
    r = consumer(6)
    weight, moments = r.weight.clone(), r.moments.clone()
    refit(r.weight, r.moments, torch.tensor([0, 5]), RIDGE)
    removal_costs([r], 6, RIDGE)
    assert torch.equal(r.weight, weight) and torch.equal(r.moments, moments)


LARGE_HEADS = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from dnge_compress import compress

torch.set_num_threads(2)
torch.manual_seed(0)
config = LlamaConfig(hidden_size=768, num_attention_heads=12, num_key_value_heads=4, head_dim=64, num_hidden_layers=2,
                     intermediate_size=96, vocab_size=512, bos_token_id=1)
small = compress(LlamaForCausalLM(config), "prune/heads", ratio=0.5, tokens=512)
print(small.config.num_key_value_heads)
"""


WIDE_LAYERS = """
import torch
from torch import nn
from dnge_compress import compress

torch.set_num_threads(2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 700), nn.ReLU(), nn.Linear(700, 600), nn.ReLU(), nn.Linear(600, 10))
small = compress(model, ratio=0.5, of="units", example_inputs=torch.randn(2, 64), scorer="obs")
print(small[0].out_features)
"""


@pytest.mark.parametrize(
    ("program", "kept"),
    [pytest.param(LARGE_HEADS, "2", id="heads"), pytest.param(WIDE_LAYERS, "350", id="layers", marks=pytest.mark.slow)],
)
def test_large_networks_are_scored_and_repaired_with_two_threads(program: str, kept: str) -> None:
    """Blocks of 192 features: batched LU solves of such never return with two threads in torch 2.13."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == kept


def test_blocks_that_rounding_made_indefinite_are_factored_all_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    blocks = half @ half.mT
    spoiled = blocks.clone()
    values, vectors = torch.linalg.eigh(blocks[1])
    values[0] = -1e-9
    spoiled[1] = (vectors * values) @ vectors.mT
    lower = factor(spoiled)
    torch.testing.assert_close(lower @ lower.mT, spoiled, atol=1e-4, rtol=0)
    assert bool(torch.isfinite(lower).all())
