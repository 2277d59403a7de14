"""The upper bound of INR2JLS on a frozen encoder: its networks rendered, in place of latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as nnf
from torch import Tensor

from dnge_compress.inr import INR2JLS, JlsConfig
from dnge_compress.inr.encoders import InrReader, Reading
from dnge_compress.inr.siren import Siren, Stack
from dnge_compress.inr.views import VIEWS, in_views


class Rendering(InrReader):
    """Has the function itself: the networks as pictures of a side."""

    def __init__(self, side: int, colours: int) -> None:
        super().__init__()
        self.picture_side, self.outputs, self.embedding = side, colours, 1

    def forward(self, stack: Stack, siren: Siren) -> Tensor:
        """Nothing: zeros `[N, 1]`."""
        return stack["0.bias"].new_zeros(len(stack["0.bias"]), 1)

    def read(self, stack: Stack, siren: Siren) -> Reading:
        """Pictures, and no embedding."""
        return Reading(embedding=self(stack, siren), picture=siren.images(stack, self.picture_side))


def rendered(reader: InrReader, config: JlsConfig) -> INR2JLS:
    """INR2JLS whose latents are the rendered pictures, each cell's pixels its channels."""
    a_cell = reader.picture_side // (config.side // 4)

    class Shown(INR2JLS):
        def latents(self, reading: Reading, views: Sequence[int] | Tensor = range(VIEWS)) -> Tensor:
            return nnf.pixel_unshuffle(in_views(reading.picture, views), a_cell)

        def _read(self, stack: Stack, siren: Siren) -> Reading:
            return self.encoder.read(stack, siren)

    channels = reader.outputs * a_cell**2
    settings = {**vars(config), "channels": channels, "skip": False}
    return Shown(reader, JlsConfig(**settings))
