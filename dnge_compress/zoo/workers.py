"""Processes that share a long job, one thread each: they end with whoever started them, however that ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch

_LOOK_EVERY = 1.0  # seconds


def each_done(jobs: int, action: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Results of `action(*task)` as they come, from `jobs` processes; the first failure ends the others' queue."""
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(os.getpid(),)
    ) as pool:
        running = [pool.submit(action, *task) for task in tasks]
        try:
            for task in as_completed(running):
                yield task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(parent: int) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A killed parent can't end its workers, and two writers in one folder would disturb each other."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)
