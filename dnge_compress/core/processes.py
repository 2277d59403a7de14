"""Several processes that work on one model: started by `torchrun` or `accelerate launch`, each takes a share of the
inputs, and sums are taken over all of them, within `joined_processes`. One process alone is all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dnge_compress.core.errors import DngeError, LaunchError, first_line
from dnge_compress.core.launcher import ended_by_signals, launcher_world

T = TypeVar("T")
N = TypeVar("N", bound=int)
JOIN_SECONDS = 300.0  # that processes wait for each other
_JOINED: ContextVar[bool] = ContextVar("joined", default=False)


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
        if values.device.type == "cpu" and dist.get_backend() == "nccl":  # which knows cards only
            on_card = values.cuda()
            dist.all_reduce(on_card)
            return values.copy_(on_card)
        dist.all_reduce(values)
    return values


def agreed(answer: N) -> N | None:
    """The answer of all processes, all of which must ask; None where theirs differ."""
    answers = torch.zeros(world(), dtype=torch.float64)
    answers[rank()] = float(answer)
    return answer if bool((summed(answers) == float(answer)).all()) else None


@contextmanager
def joined_processes() -> Iterator[None]:
    """While entered, the processes that a launcher has started work on one model: all of them must make the same calls.
    Nothing happens in a single process. Raises LaunchError where the others don't come."""
    is_ours = dist.is_available() and not dist.is_initialized()
    world = launcher_world() if is_ours else None
    if is_ours and world is None:
        yield
        return
    if world is not None:
        _join(*world)
    token = _JOINED.set(True)
    try:
        yield
    finally:
        _JOINED.reset(token)
        if is_ours:
            dist.destroy_process_group()


@contextmanager
def each_alone() -> Iterator[None]:
    """While entered, every process is all of them to itself: each does the whole of a work that isn't shared."""
    token = _JOINED.set(False)
    try:
        yield
    finally:
        _JOINED.reset(token)


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


def _join(rank: int, processes: int) -> None:
    from torch.distributed.rendezvous import rendezvous  # here, since some builds of torch have none

    with ended_by_signals():
        try:
            store = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))[0]
            store.set(f"dnge/{rank}", "here")
            store.wait([f"dnge/{other}" for other in range(processes)], timedelta(seconds=JOIN_SECONDS))
            # gloo for what lies on CPUs, nccl for what lies on cards
            dist.init_process_group(store=store, rank=rank, world_size=processes)
        except (ValueError, RuntimeError) as e:
            raise LaunchError(
                f"WORLD_SIZE and RANK say that this is process {rank} of {processes}, and they did not come together "
                f"({first_line(e)}); start all of them by torchrun, or unset WORLD_SIZE"
            ) from None


def _are_several() -> bool:
    """Not every group of processes is one for us: a program may let the first one alone compress."""
    return _JOINED.get() and dist.is_initialized() and dist.get_world_size() > 1
