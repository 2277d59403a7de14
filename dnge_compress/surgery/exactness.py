"""The proof after surgery: the pruned model equals the dense one with the same units masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dnge_compress.core.errors import ExactnessError, first_line
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.signals.inference import Inputs, call, inference_mode_of
from dnge_compress.surgery.routes import ChosenRoutes, FollowedRoutes

# Relative to the output's norm: summation order changes with the shapes, more so in half precision.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check(pruned: nn.Module, dense: nn.Module, applied: AppliedCuts, inputs: Inputs) -> float:
    """Relative difference between the pruned and the masked dense model on `inputs`, before any repair; routers send
    every token to the same experts in both.

    Raises ExactnessError if it is larger than rounding explains.
    """
    with torch.no_grad(), inference_mode_of(dense), inference_mode_of(pruned):
        with ChosenRoutes() as chosen:
            expected = call(MaskedModel(dense, applied), inputs)
        try:
            with FollowedRoutes(chosen):
                actual = call(pruned, inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ExactnessError(
                f"the pruned {type(dense).__name__} can't be run ({first_line(e)}); nothing was changed, "
                "please report the architecture"
            ) from e
        difference = relative_difference(actual, expected)
    limit = TOLERANCES[next(dense.parameters()).dtype]
    if not difference <= limit:
        raise ExactnessError(
            f"surgery is not exact: pruned and masked outputs of {type(dense).__name__} differ by {difference:.2g} "
            f"(limit {limit:g}); nothing was changed, please report the architecture"
        )
    return difference


def relative_difference(output: Tensor, expected: Tensor) -> float:
    """‖output − expected‖ / ‖expected‖; infinite where shapes differ or a value is not finite."""
    if output.shape != expected.shape or not torch.isfinite(output).all():
        return float("inf")
    scale = expected.float().norm().clamp_min(1e-12)
    return float((output.float() - expected.float()).norm() / scale)
