"""Several processes that work on one model: started by `torchrun` or `accelerate launch`, each takes a share of the
inputs, and sums are taken over all of them. One process alone is all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dnge_compress.core.errors import DngeError

T = TypeVar("T")


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if _are_several() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _are_several() else 1


def own_share(things: Sequence[T]) -> list[tuple[int, T]]:
    """What of a sequence is this process's, each with its number; all processes together have everything once."""
    return list(enumerate(things))[rank() :: world()]


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place where there are several."""
    if _are_several():
        dist.all_reduce(values)
    return values


@contextmanager
def joined_processes() -> Iterator[None]:
    """While entered, the processes that a launcher has started belong together; nothing happens in a single one, and
    where the program has seen to it itself."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available() or dist.is_initialized():
        yield
        return
    dist.init_process_group()  # gloo for what lies on CPUs, nccl for what lies on cards
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def one_process_writes() -> Iterator[bool]:
    """While entered, whether this is the process that writes; the others wait until it has. Raises DngeError in those
    if it failed."""
    is_mine, failed = rank() == 0, torch.ones(())
    try:
        yield is_mine
        failed.zero_()
    finally:
        others_failed = bool(summed(failed))
        if others_failed and not is_mine:
            raise DngeError("the process that writes has failed; its own words say why")


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
