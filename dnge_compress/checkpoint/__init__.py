"""Checkpoints in and out: open a model safely, save a compressed one whole or not at all, load it back."""

from dnge_compress.checkpoint.compression import Compression
from dnge_compress.checkpoint.loading import load, open_model, opened
from dnge_compress.checkpoint.saving import save
from dnge_compress.checkpoint.weight_checks import check_weights
from dnge_compress.core.wrappers import unwrapped

__all__ = ["Compression", "check_weights", "load", "open_model", "opened", "save", "unwrapped"]
