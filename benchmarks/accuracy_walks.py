"""What untrained walks of the DNG encoder say of networks: random message passing as a table that regressors read."""

from __future__ import annotations

import torch
from accuracy_networks import FEATURES, Herd, Subjects
from accuracy_readers import network_encoder, standardised
from torch import Tensor
from torch.func import vmap

from dnge_compress.encoder.network import NetworkEncoder

HIDDEN = 16  # of each of the two passes


@torch.no_grad()
def walked(subjects: Subjects, fit: Tensor, seed: int) -> Tensor:
    """Means and deviations over units of the states, of the first, the last and all spaces: `[N, 6 · 2 · HIDDEN]`.
    Features of units are at mean 0 and deviation 1 over the networks at `fit`."""
    torch.manual_seed(seed)
    encoder = network_encoder(FEATURES, hidden=HIDDEN)
    herds = standardised(subjects, fit).herds
    found = torch.zeros(len(subjects), 6 * 2 * HIDDEN)
    for herd in herds:
        found[herd.places] = _of_herd(encoder, herd)
    return found


def _of_herd(encoder: NetworkEncoder, herd: Herd) -> Tensor:
    written = list(dict.fromkeys(name for step in herd.graph.steps for name in step.writes))

    def one(weights: dict[str, Tensor], features: dict[str, Tensor]) -> Tensor:
        states = encoder.states(herd.graph, weights, features)
        rows = [torch.cat([states[name].mean(0), states[name].std(0, correction=0)]) for name in written]
        return torch.cat([rows[0], rows[-1], torch.stack(rows).mean(0)])

    features = {name: values[..., :FEATURES] for name, values in herd.features.items()}
    return vmap(one)(herd.stack, features)
