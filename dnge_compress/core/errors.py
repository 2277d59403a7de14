"""Every error the package raises on purpose.

DngeError
├── UnknownNameError (KeyError)       an unknown recipe, scorer, family or key; offers the nearest
├── UnsupportedModelError (ValueError) a model the package can't read safely
├── WeightError (ValueError)          NaN, infinite or integer weights
├── DataError (ValueError)            data that is missing or doesn't fit, or a setting out of range
├── BudgetError (ValueError)          a ratio that can't be reached
├── PlanError (ValueError)            a plan that is broken or made for another model
├── RecipeError (ValueError)          a recipe file that doesn't validate
├── CheckpointError (ValueError)      a folder that can't be read or must not be overwritten
├── LaunchError (RuntimeError)        a training that doesn't get the processes or strategy it asks for
├── DivergedError (ArithmeticError)   a training whose numbers are no longer finite
├── ExactnessError (RuntimeError)     surgery whose result differs from the masked model
└── UsageError                        a command line that doesn't fit the grammar (cli/grammar.py)
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

from dnge_compress.core.wording import clean, safe

MOST_NAMED = 40
LONGEST = 800  # characters of a message; what is quoted may be as long as a file
# A disk that is full, or a place that is closed to us.
DISK_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
# A name that can't be that of a file there.
NAME_CODES = (errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


class DngeError(Exception):
    """Root of the tree: one line that says what was wrong, with which object, and what to do.

    What it quotes may come from anywhere: characters that could steer a terminal are replaced, and the middle of a long
    message is left out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_one_line(str(message)))


class UnknownNameError(DngeError, KeyError):
    """A name that is not registered; the message offers the nearest ones, or the one that is used `instead` today."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "", instead: str = "") -> None:
        self.name = name
        self.nearest = f"it is called '{instead}' now" if instead else nearest(name, known)
        super().__init__(f"unknown {what} '{name}'; {self.nearest}{'; ' + hint if hint else ''}")

    def __str__(self) -> str:
        return str(self.args[0])


class UnsupportedModelError(DngeError, ValueError):
    """A model the package can't read safely."""


class WeightError(DngeError, ValueError):
    """A weight that is not a finite floating-point number."""


class DataError(DngeError, ValueError):
    """Data that is missing or doesn't fit the model, or a setting that is out of range."""


class BudgetError(DngeError, ValueError):
    """A budget that is out of range or can't be reached under the constraints; `most` is the largest ratio that can."""

    def __init__(self, message: str, most: float | None = None) -> None:
        self.most = most
        super().__init__(message)


class PlanError(DngeError, ValueError):
    """A plan that is malformed or was made for another model."""


class RecipeError(DngeError, ValueError):
    """A recipe that doesn't validate."""


class CheckpointError(DngeError, ValueError):
    """A checkpoint folder that can't be read, or must not be overwritten."""


class LaunchError(DngeError, RuntimeError):
    """A training that can't start as asked: arguments, processes or strategy."""


class DivergedError(DngeError, ArithmeticError):
    """A training whose loss or gradient isn't a finite number."""


class ExactnessError(DngeError, RuntimeError):
    """Surgery whose result differs from the dense model with the same units masked."""


def _one_line(message: str) -> str:
    if message != safe(message):
        message = clean(message)
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"


def refuse_below(least: int, **settings: float) -> None:
    """Raise DataError on a setting below `least`, or on one that is no number, by its name."""
    for name, value in settings.items():
        if not value >= least:
            raise DataError(f"{name} is {value}; it must be at least {least}")


def refuse_rate(rate: float) -> None:
    """Raise DataError on a learning rate that isn't a finite number above 0."""
    if not 0 < rate < float("inf"):
        raise DataError(f"learning_rate is {rate}; it must be a number above 0")


def first_line(error: BaseException) -> str:
    """An error's message, often another package's, cut to one line; where that only announces the next, both."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    end = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1]).rstrip(":")


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names come closest to `name` ("did you mean …?"), or list them all."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{n}'" for n in close) + "?"
    return "known: " + ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
