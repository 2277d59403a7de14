"""What the encoder is given of SIRENs: features of their neurons, and weights at the scale of inference."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from dnge_compress.inr.chain import OUTPUT
from dnge_compress.inr.siren import Siren, Stack, grid

PLACES = 5  # a side of the grid of points at which first-layer neurons are looked at
FEATURES = 3 + 2 * PLACES**2  # of a neuron: its phase, sine and cosine of it, and both for its weights at the points


def neuron_features(stack: Stack, siren: Siren) -> dict[str, Float[Tensor, "N _ F"]]:
    """Features `[N, U, F]` of the hidden neurons, by space: Fourier features of the bias, and of all weights in the
    first layer, whose inputs are known apart."""
    with torch.autocast("cpu", enabled=False):  # as `Siren.answers`
        return {f"hidden{i}": _of_layer(stack, siren, i - 1) for i in range(1, siren.depth)}


def with_probes(features: dict[str, Tensor], stack: Stack, siren: Siren, points: Tensor) -> dict[str, Tensor]:
    """Features, and after them what every node answers at the points `[P, 2]`: `[N, U, F + P]`, the outputs' too."""
    answers = siren.answers(stack, points)
    names = [*(f"hidden{i}" for i in range(1, siren.depth)), OUTPUT]
    blank = answers[-1].new_zeros(*answers[-1].shape[:1], siren.widths[-1], FEATURES)
    return {n: torch.cat([features.get(n, blank), a.mT], -1) for n, a in zip(names, answers, strict=True)}


def at_inference_scale(stack: Stack, siren: Siren) -> dict[str, Tensor]:
    """Phases and colours as inference adds them up; weights times the root of their number, as messages are over it."""
    found = {}
    for layer in range(siren.depth):
        scale = siren.omega if layer < siren.depth - 1 else 1.0
        found[f"{layer}.weight"] = stack[f"{layer}.weight"] * (scale * siren.widths[layer] ** 0.5)
        found[f"{layer}.bias"] = stack[f"{layer}.bias"] * scale
    return found


def _of_layer(stack: Stack, siren: Siren, layer: int) -> Tensor:
    phase = stack[f"{layer}.bias"] * siren.omega
    own = torch.stack([phase, phase.sin(), phase.cos()], -1)
    if layer:
        return nnf.pad(own, (0, FEATURES - own.shape[-1]))
    places = grid(PLACES).to(phase)
    waves = phase[..., None] + siren.omega * stack["0.weight"] @ places.T  # [N, U, places]
    return torch.cat([own, waves.sin(), waves.cos()], -1)
