"""A block of work that ends when its time is over, also on threads and in loops that never leave Python."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dnge_compress.core.errors import DngeError

WATCH_EVERY = 0.05  # seconds


class _OvertimeError(BaseException):
    """Not an Exception, so that no `except Exception` on the way keeps it."""


@contextmanager
def deadline(seconds: float, over: DngeError) -> Iterator[None]:
    """End the block with the error `over` when the time is.

    A watchdog raises in this thread, again and again until the block has ended, for a finaliser that happens to run
    swallows what is raised in it. That ends endless loops of plain Python (torch-pruning's, chat templates') on any
    thread; SIGALRM would serve the main thread only and belongs to others (pytest-timeout).
    """
    thread, has_ended = threading.get_ident(), threading.Event()

    def watch() -> None:
        if not has_ended.wait(seconds):
            while not has_ended.wait(WATCH_EVERY):
                _raise_in(thread, _OvertimeError)

    def end() -> None:
        has_ended.set()
        watchdog.join()
        _raise_in(thread, None)

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


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise in another thread at its next step in Python; None takes back what it hasn't seen yet."""
    what = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
