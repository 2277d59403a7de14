"""The command `dnge`: parse, run, turn errors into one line and an exit code.

Only light modules are imported here; what a command needs is imported when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from dnge_compress.cli.grammar import parser
from dnge_compress.core.errors import BudgetError, DngeError, ExactnessError

UNEXPECTED, BAD_INPUT, IMPOSSIBLE_BUDGET, NOT_EXACT, INTERRUPTED = 1, 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dnge` with the arguments `argv` (those of the process by default); returns the exit code."""
    is_debugging = os.environ.get("DNGE_DEBUG") == "1"
    try:
        with warnings.catch_warnings():
            if not is_debugging:
                warnings.simplefilter("ignore")
            options = parser().parse_args(argv)
            command = importlib.import_module(f"dnge_compress.cli.{options.module}")
            getattr(command, options.function)(options)
            return 0
    except BrokenPipeError:
        # The reader of our output went away (`dnge … | head`); without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("dnge: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as e:
        if is_debugging:
            raise
        return _report(e)


def _report(error: Exception) -> int:
    message = " ".join(str(error).split())
    if isinstance(error, DngeError):
        print(f"dnge: error: {message}", file=sys.stderr)
        codes = {BudgetError: IMPOSSIBLE_BUDGET, ExactnessError: NOT_EXACT}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), BAD_INPUT)
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    print(f"dnge: error: unexpected {what} (DNGE_DEBUG=1 shows where)", file=sys.stderr)
    return UNEXPECTED
