"""The layers of torch that come in one, two and three dimensions."""

from __future__ import annotations

from typing import Any

from torch import nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def is_depthwise(module: Any) -> bool:
    """Whether a conv has one kernel per channel, so that nothing mixes."""
    return isinstance(module, (*CONVS, *TRANSPOSED)) and module.groups == module.in_channels == module.out_channels
