"""Who carries out the tasks of a zoo: a pool of processes on this machine, or Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dnge_compress.core.errors import UnknownNameError, refuse_below
from dnge_compress.zoo import ray_workers, workers

EngineName = Literal["pool", "ray"]


@dataclass(frozen=True)
class Engine:
    """An engine and how many of its processes work at once, one thread each. What they make is the same to the last
    bit, whichever it is.

    Raises UnknownNameError, DataError on fewer processes than one, LaunchError if Ray is asked for and not installed.
    """

    name: EngineName = "pool"
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.name not in get_args(EngineName):
            raise UnknownNameError("engine", self.name, get_args(EngineName))
        refuse_below(1, jobs=self.jobs)
        if self.name == "ray":
            ray_workers.installed()

    def each_done(self, action: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results of `action(*task)` as they come; the first failure ends the queue. Ray does a task again whose worker
        died, so whatever an action has finished must be kept and known again."""
        carry_out = ray_workers.each_done if self.name == "ray" else workers.each_done
        return carry_out(self.jobs, action, tasks)


ONE_PROCESS = Engine()
