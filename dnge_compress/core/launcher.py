"""Whether this process is one of several that a launcher (torchrun, accelerate) started; the environment tells."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dnge_compress.core.errors import LaunchError
from dnge_compress.core.signals import handled_by


def launcher_world() -> tuple[int, int] | None:
    """(rank, processes) if an outer launcher started this process as one of several, else None. Raises LaunchError."""
    processes, rank = _number("WORLD_SIZE"), _number("RANK")
    if processes is None or processes < 2 or rank is None:
        return None
    if not 0 <= rank < processes:
        raise LaunchError(f"RANK is {rank}, and WORLD_SIZE {processes}; number the processes from 0, or unset both")
    return rank, processes


def is_rank0() -> bool:
    """Whether this process is the only one, or the first of several."""
    world = launcher_world()
    return world is None or world[0] == 0


def local_rank(rank: int) -> int:
    """This process's number among those of its machine, which is also that of its card; `rank` where no launcher says.
    Raises LaunchError."""
    found = _number("LOCAL_RANK")
    return rank if found is None else found


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While entered, signals end this process as they do by default: one that waits for others outside of Python hears
    of no handler that is written in it. Signals that are ignored stay so."""
    with handled_by(signal.SIG_DFL):
        yield


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    try:
        return int(text) if text else None
    except ValueError:
        raise LaunchError(f"{name} is '{text}', which is no whole number; correct or unset it") from None
