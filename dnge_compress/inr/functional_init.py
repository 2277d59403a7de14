"""Initial values with which message passing is the network's own inference, at H points of the plane.

Channel k of the learned input nodes holds point k; a message is what a layer adds up, an update its sine. Before it has
learned anything, the encoder of weights then holds the picture that they show, at as many points as a state has
channels: what probe features are (Kofinas et al. 2024, arXiv 2403.12143), by message passing itself. Training starts
there.
"""

from __future__ import annotations

import torch

from dnge_compress.encoder.passes import GRU, MessagePass
from dnge_compress.inr.chain import INPUT
from dnge_compress.inr.siren import spread_points

SHUT = 4.0  # of a gate's logit, at first


@torch.no_grad()
def functional_init(one: MessagePass) -> None:
    """Initialise a forward pass over raw weights, with sines for updates and without norms; all else is zero."""
    message, update, size = one.streams[0], one.update, len(one.mix.bias)
    assert isinstance(update, GRU)
    for parameter in one.parameters():
        parameter.zero_()
    one.nodes[INPUT].copy_(spread_points(size).T)
    for weight in (message.node.weight, one.mix.weight):
        weight.copy_(torch.eye(size))
    message.edge.fill_(1)
    one.gain.fill_(1)
    one.scale.weight[:, 1] = 1  # the bias of a layer, to every channel
    for layer in (update.from_input, update.from_hidden):
        layer.weight[2 * size :] = torch.eye(size)
    update.from_input.bias[:size] = SHUT  # the candidate takes the whole message
    update.from_input.bias[size : 2 * size] = -SHUT  # and takes its place
