"""Ctrl-C and SIGTERM: at any moment one line and the exit code of the signal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dnge_compress.cli.signals import NAMES
from dnge_compress.core.signals import handled_by

SHOW_CURSOR = "\x1b[?25h"


class Interruption:
    """What signals do while a command runs.

    While libraries are loaded nothing is at stake, and some of them swallow what is raised in their imports: the
    process ends at once. While the command works, KeyboardInterrupt lets it tidy up; a second signal ends it at once.
    """

    def __init__(self) -> None:
        self.is_loading = True
        self.number = 0
        self.process = os.getpid()
        self.tidy: Callable[[], None] = lambda: None  # what can't wait for the end of the work

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if os.getpid() != self.process:  # a forked worker, which is its parent's to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.is_loading or self.number:
            self.number = number
            self.tidy()
            if sys.stderr.isatty():
                sys.stderr.write(f"{SHOW_CURSOR}\r\n")
            os._exit(self.report())
        else:
            self.number = number
            raise KeyboardInterrupt

    def report(self) -> int:
        """Say what happened; returns the exit code, 128 and the signal's number."""
        number = self.number or signal.SIGINT
        print(f"dnge: {NAMES[signal.Signals(number)]}", file=sys.stderr, flush=True)
        return 128 + number


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Take the signals of the process for a block."""
    found = Interruption()
    with handled_by(found):
        yield found
