"""The command `dnge`: parse, run, turn errors into one line and an exit code.

Nothing is imported here before signals are taken, and only light modules before the command is known.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from dnge_compress.cli.interruption import Interruption, interruptible

if TYPE_CHECKING:
    from argparse import Namespace

UNEXPECTED, BAD_INPUT, IMPOSSIBLE_BUDGET, NOT_EXACT, DIVERGED = 1, 2, 3, 4, 5
CALIBRATING = ("score", "plan", "apply", "compress", "curve", "place")  # several processes share their inputs
INTO_FOLDERS = ("zoo",)  # commands that add to a folder, and claim it themselves
LOOP = "Symlink loop"  # how Path.resolve begins, before Python 3.13
LIGHT = ("recipe_commands", "data_commands", "job_commands", "completion")  # modules that need no torch


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dnge` with the arguments `argv` (those of the process by default); returns the exit code."""
    is_debugging = os.environ.get("DNGE_DEBUG") == "1"
    with interruptible() as interruption:
        try:
            with warnings.catch_warnings():
                if not is_debugging:
                    warnings.simplefilter("ignore")
                _run(sys.argv[1:] if argv is None else argv, interruption)
                return 0
        except BrokenPipeError:
            # The reader of our output went away (`dnge … | head`); without this the interpreter complains at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            return interruption.report()
        except Exception as e:
            if interruption.number:  # some libraries turn an interruption into an error of theirs
                return interruption.report()
            if is_debugging:
                raise
            return _report(_told(e))


def _run(argv: Sequence[str], interruption: Interruption) -> None:
    from dnge_compress.cli.grammar import parser
    from dnge_compress.core.claims import claimed
    from dnge_compress.core.folders import refuse_unspeakable
    from dnge_compress.core.launcher import is_rank0

    refuse_unspeakable(*argv)
    options = parser().parse_args(argv)
    if "module" not in options:
        options.help_of.print_help()
        return
    if hasattr(options, "model") or options.function == "report":
        importlib.import_module("dnge_compress.cli.early").refuse_early(options)
    output = getattr(options, "output", None)
    if not output or options.function in INTO_FOLDERS or not is_rank0():
        _carry_out(options, interruption)
        return
    with claimed(Path(output)) as interruption.tidy:
        _carry_out(options, interruption)


def _carry_out(options: Namespace, interruption: Interruption) -> None:
    name = f"dnge_compress.cli.{options.module}"
    if options.module in LIGHT or name in sys.modules:
        command = importlib.import_module(name)
    else:
        from dnge_compress.core.progress_bars import loading_libraries

        with loading_libraries():
            command = importlib.import_module(name)
    interruption.is_loading = False
    with _of_all_processes() if options.function in CALIBRATING else nullcontext():
        getattr(command, options.function)(options)
    sys.stdout.flush()


@contextmanager
def _of_all_processes() -> Iterator[None]:
    """Under torchrun, the processes work together and the first one speaks."""
    from dnge_compress.core.processes import joined_processes, rank

    with joined_processes(), ExitStack() as silence:
        if rank():
            nowhere = silence.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        yield


def _told(error: Exception) -> Exception:
    """A file or disk that is closed, full or gone is bad input; other errors of the system are unexpected."""
    from dnge_compress.core.errors import DISK_CODES, NAME_CODES, DngeError

    if isinstance(error, RuntimeError) and str(error).startswith(LOOP):
        return DngeError(f"{error}; correct the link, or the name")
    if not isinstance(error, OSError) or error.errno not in (*DISK_CODES, *NAME_CODES):
        return error
    if error.filename is None:  # what is left of our output can't be written either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    what = f"'{error.filename}'" if error.filename else "the output"
    way_out = "correct the name" if error.errno in NAME_CODES else "make room, or choose another place"
    return DngeError(f"{what} can't be read or written ({error.strerror}); {way_out}")


def _report(error: Exception) -> int:
    from dnge_compress.core.errors import BudgetError, DivergedError, DngeError, ExactnessError

    message = " ".join(str(error).split())
    if isinstance(error, DngeError):
        print(f"dnge: error: {message}", file=sys.stderr)
        codes = {BudgetError: IMPOSSIBLE_BUDGET, ExactnessError: NOT_EXACT, DivergedError: DIVERGED}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), BAD_INPUT)
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    print(f"dnge: error: unexpected {what} (DNGE_DEBUG=1 shows where)", file=sys.stderr)
    return UNEXPECTED
