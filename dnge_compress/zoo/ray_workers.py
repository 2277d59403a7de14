"""Processes that share a long job by way of Ray, an extra: on this machine, or on the cluster that RAY_ADDRESS names.

The machines of a cluster need this package, the same versions of torch, and the same folders: tasks hold paths, and are
carried out in the folder that the command was given in. Ray does a task again whose worker died.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dnge_compress.core.errors import LaunchError, first_line
from dnge_compress.core.signals import handlers_kept

ADDRESS = "RAY_ADDRESS"
HERE = "local"  # the address of a cluster that begins and ends with us
RETRIES = 3  # of a task whose worker died
STORE_BYTES = 80 << 20  # of memory for results, which are short: the least that Ray takes


def installed() -> Any:
    """Ray. Raises LaunchError where it isn't installed."""
    try:
        import ray
        from ray import init  # noqa: F401  # a folder that happens to be called ray has none
    except ImportError as e:
        raise LaunchError("--engine ray needs Ray: pip install 'dnge-compress[ray]', or leave the engine out") from e
    return ray


def each_done(jobs: int, action: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Results of `action(*task)` as they come, from at most `jobs` processes at once; the first failure, or whoever
    stops asking, ends what still runs.

    A cluster that the caller has entered (`ray.init`) is used and left as it is. Raises what a task raises, LaunchError
    where there is no cluster or a task's workers die again and again.
    """
    waiting, running = deque(tasks), list[Any]()
    if not waiting:
        return
    ray = installed()
    with _cluster(ray, jobs):
        carry_out = ray.remote(num_cpus=1, max_retries=RETRIES)(_carry_out)
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(carry_out.remote(Path.cwd(), action, waiting.popleft()))
                (done,), running = ray.wait(running)
                yield _result(ray, done)
        finally:
            for task in running:
                ray.cancel(task, force=True)


@contextmanager
def _cluster(ray: Any, jobs: int) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    address = os.environ.get(ADDRESS) or HERE
    own = {"num_cpus": jobs, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nobody is told
    try:
        with handlers_kept():
            # What workers print would come on stdout, which is for data; their errors are raised here anyway.
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
            ray.init(address, **quiet, **(own if address == HERE else {}))
    except SystemExit:  # what it makes of a SIGTERM while it starts; whose handler is back takes it
        signal.raise_signal(signal.SIGTERM)
        raise
    except Exception as e:  # it has no errors of its own for this
        way_out = "try again when the machine is less busy" if address == HERE else f"correct or unset {ADDRESS}"
        raise LaunchError(f"Ray's cluster '{address}' can't be used ({first_line(e)}); {way_out}") from e
    try:
        yield
    finally:
        ray.shutdown()


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as e:
        if not isinstance(e.cause, ray.exceptions.RayError):
            raise e.cause from e  # what the action raised; the other holds its traceback
        raise LaunchError(
            f"a worker of Ray's can't read its task ({first_line(e.cause)}); all machines of a cluster need this "
            "package and the same versions of everything"
        ) from e
    except ray.exceptions.RayError as e:
        raise LaunchError(
            f"a task's workers died {RETRIES + 1} times ({first_line(e)}); what is finished stays: give them more "
            "memory, or fewer --jobs, and run the same command again"
        ) from e


def _carry_out(folder: Path, action: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    try:
        os.chdir(folder)
    except OSError as e:
        raise LaunchError(
            f"machine '{os.uname().nodename}' of Ray's cluster can't enter '{folder}' ({e.strerror}); work in a folder "
            "that all of its machines share"
        ) from None
    return action(*task)
