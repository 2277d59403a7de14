"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another system, or another C library
        return None


def give_back() -> None:
    """Give back what glibc holds for later: between stages that each take hundreds of megabytes in pieces of some, it
    would hold what the largest took. Takes milliseconds; does nothing elsewhere."""
    trim = _trim()
    if trim is not None:
        trim(0)
