"""The signals that end a process, and another handler for them for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled_by(handler: Any) -> Iterator[None]:
    """Another handler for a block, but for signals that are ignored (`nohup`, `trap "" INT`) or handled by what isn't
    written in Python; on other threads than the main one there are none to take."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handlers_kept():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, handler)
        yield


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of these signals back after a block, which may set others; on other threads than the main one
    nobody can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # which isn't written in Python
                signal.signal(number, handler)
