"""Memory that isn't needed for a while, given back to the system."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4 and later: what lies in a file too leaves memory, nothing is ever lost


@cache
def _libc(name: str) -> Any:
    """A function of glibc; None on another system, or with another C library."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def give_back() -> None:
    """Give back what glibc holds for later: between stages that each take hundreds of megabytes in pieces of some, it
    would hold what the largest took. Takes milliseconds; does nothing elsewhere."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def available_bytes() -> int:
    """Of memory, what processes can have without others losing theirs."""
    return int(psutil.virtual_memory().available)


def page_out(values: Tensor) -> None:
    """Let the pages of a tensor that is mapped from a file leave memory until it is read again; other tensors stay, and
    so do all values. Does nothing elsewhere than on Linux."""
    advise = _libc("madvise")
    if advise is None or values.device.type != "cpu" or not values.numel() or not _is_mapped(values.data_ptr()):
        return
    start = values.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = values.data_ptr() + values.nbytes
    advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), PAGE_OUT)


def _is_mapped(address: int) -> bool:
    """Whether a file lies at an address: what lies in none would be swapped out, if the system has room for that."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        first, _, end = span.partition("-")
        if int(first, 16) <= address < int(end, 16):
            return inode != "0"
    return False
