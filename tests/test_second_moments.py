"""Means and covariances of features that hardly vary, in memory and in files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dnge_compress.signals import second_moments
from dnge_compress.signals.second_moments import MomentStore

FEATURES = 7


def of(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    moments = MomentStore().moments(FEATURES, torch.device("cpu"))
    for rows in batches:
        moments.add(rows)
    assert moments.count == sum(map(len, batches))
    return moments.finish()


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(second_moments, "MEMORY_BYTES", 0)
    return request.param


def mixed(rows: int) -> Tensor:
    """Features that go together."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(FEATURES) + 0.5 * torch.randn(FEATURES, FEATURES, generator=generator)
    return torch.randn(rows, FEATURES, generator=generator) @ matrix


@pytest.mark.parametrize(("mean", "deviation"), [(1e4, 1e-3), (-1e4, 1.0), (0.0, 1e-3), (1.0, 1e3)])
@pytest.mark.parametrize("sizes", [(5, 400, 1, 1000), (0, 1, 1405)])
def test_rounding_leaves_the_covariance_of_features_that_hardly_vary(
    place: str, mean: float, deviation: float, sizes: tuple[int, ...]
) -> None:
    rows = mean * torch.linspace(1, 2, FEATURES) + deviation * mixed(sum(sizes))
    exact = rows.double()
    found_mean, covariance = of(list(rows.split(list(sizes))))
    expected = torch.cov(exact.T, correction=0)
    deviations = expected.diagonal().sqrt()
    error = (covariance.double() - expected).abs() / (deviations[:, None] * deviations)
    assert float(error.max()) < 1e-2
    torch.testing.assert_close(found_mean.double(), exact.mean(0), rtol=1e-6, atol=1e-3 * deviation)


def test_rows_of_half_precision_count_as_what_they_are(place: str) -> None:
    rows = (3 + mixed(300)).bfloat16()
    mean, covariance = of(list(rows.split(100)))
    torch.testing.assert_close(mean, rows.float().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(covariance, torch.cov(rows.float().T, correction=0), rtol=1e-3, atol=1e-4)


def test_without_rows_all_is_zero(place: str) -> None:
    mean, covariance = of([])
    assert not mean.any() and covariance.shape == (FEATURES, FEATURES) and not covariance.any()
