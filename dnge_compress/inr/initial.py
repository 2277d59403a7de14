"""Initial values at which the walk is the network's own inference, at H points of the plane.

Channel k of the learned input nodes holds point k; a message is what a layer adds up, an update its sine. Before it has
learned anything, the encoder of weights then holds the picture that they show, at as many points as a state has
channels: what probe features are (Kofinas et al. 2024, arXiv 2403.12143), by the walk itself; learning goes on there.
"""

from __future__ import annotations

import torch

from dnge_compress.encoder.sweeps import GRU, Sweep
from dnge_compress.inr.chain import INPUT
from dnge_compress.inr.siren import spread

SHUT = 4.0  # of a gate's logit, at first


@torch.no_grad()
def begin_as_inference(sweep: Sweep) -> None:
    """Set a forward sweep over raw weights, with sines for updates and without norms; all else begins at zero."""
    message, update, size = sweep.streams[0], sweep.update, len(sweep.mix.bias)
    assert isinstance(update, GRU)
    for parameter in sweep.parameters():
        parameter.zero_()
    sweep.nodes[INPUT].copy_(spread(size).T)
    for weight in (message.node.weight, sweep.mix.weight):
        weight.copy_(torch.eye(size))
    message.edge.fill_(1)
    sweep.gain.fill_(1)
    sweep.scale.weight[:, 1] = 1  # the bias of a layer, to every channel
    for layer in (update.from_input, update.from_hidden):
        layer.weight[2 * size :] = torch.eye(size)
    update.from_input.bias[:size] = SHUT  # the candidate hears the whole message
    update.from_input.bias[size : 2 * size] = -SHUT  # and takes its place
