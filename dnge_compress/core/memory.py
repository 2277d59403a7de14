"""Memory that isn't needed for a while, given back to the system."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

GROUPS = Path("/sys/fs/cgroup")  # of Linux's second version, where containers have their limits
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
    """Of memory, what this process can have without others losing theirs, and within the limits of its container."""
    return min((int(psutil.virtual_memory().available), *_left_in_groups(_own_group())))


def _own_group() -> Path:
    """Where the limits of this process's control group lie; the root's where nothing is said of it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return GROUPS
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return GROUPS / own


def _left_in_groups(group: Path) -> list[int]:
    """What is left in a control group, and in those around it, for each that has a limit; what the system would drop
    for others, files that were read once, counts as left."""
    found = []
    for folder in (group, *group.parents):
        try:
            limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if limit != "max":
                found.append(max(0, int(limit) - int(used) + int(facts.get("inactive_file", 0))))
        except (OSError, ValueError):
            continue  # no such group, or one that may not be read
    return found


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
