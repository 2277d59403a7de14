"""A block of work that ends when its time is over, also on threads and in loops that never leave Python."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dnge_compress.core.errors import DngeError

WATCH_EVERY = 0.05  # seconds
LOOK_EVERY = 0.002  # seconds, at the clock of a thread that is near its end


class _OvertimeError(BaseException):
    """Not an Exception, so that no `except Exception` on the way keeps it."""


@contextmanager
def deadline(seconds: float, over: DngeError) -> Iterator[None]:
    """End the block with the error `over` when its thread has worked for so long: a busy machine takes no time away.

    A watchdog raises in this thread, again and again until the block has ended, for a finaliser that happens to run
    swallows what is raised in it. That ends endless loops of plain Python (torch-pruning's, chat templates') on any
    thread; SIGALRM would serve the main thread only and belongs to others (pytest-timeout).
    """
    thread, has_ended = threading.get_ident(), threading.Event()
    worked = _clock_of(thread)
    end_at, is_over = worked() + seconds, threading.Event()

    def watch() -> None:
        while (left := end_at - worked()) > 0:
            if has_ended.wait(max(left, LOOK_EVERY)):  # however near: a thread that waits comes no nearer
                return
        is_over.set()
        while not has_ended.wait(WATCH_EVERY):
            _raise_in(thread)

    def end() -> None:
        has_ended.set()
        watchdog.join()
        if is_over.is_set():
            _catch(thread)

    watchdog = threading.Thread(target=watch, daemon=True)
    watchdog.start()
    try:
        try:
            yield
        finally:
            while not has_ended.is_set() or watchdog.is_alive():  # what is raised in here must not keep it going
                end()
    except _OvertimeError:
        end()
        raise over from None


def _clock_of(thread: int) -> Callable[[], float]:
    """The processor seconds of a thread; where the system doesn't tell them, seconds."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock)


def _raise_in(thread: int) -> None:
    """Raise in another thread at its next step in Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_OvertimeError))


def _catch(thread: int) -> None:
    """Raise and catch what may still be pending in this thread. Taken back instead, by raising nothing, Python 3.11
    looks for it for ever under a profiler or debugger."""
    try:
        while True:  # a finaliser that runs here swallows what is raised in it
            _raise_in(thread)
    except _OvertimeError:
        pass
