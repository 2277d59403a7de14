"""`dnge` as a process of its own: signals are taken before anything else is loaded, and until the process has ended."""

from __future__ import annotations

import signal

from dnge_compress.cli.signals import NAMES, end


def start() -> int:
    """Run `dnge` with the arguments of the process; returns the exit code."""
    for number in NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a shell's `&` want it
            signal.signal(number, end)
    from dnge_compress.cli.main import main  # here, since even light modules take a while on a busy disk

    return main()
