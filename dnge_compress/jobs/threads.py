"""The CPU threads of a job: sums are rounded in an order that depends on their number, so a job goes on with as many as
it began with, whatever the machine gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dnge_compress.jobs.folder import JobFolder


@contextmanager
def same_threads(folder: JobFolder) -> Iterator[None]:
    """Run the block with the number of threads that the claimed folder records, and say so where it is another."""
    given, wanted = torch.get_num_threads(), folder.threads
    if given != wanted:
        print(f"dnge: goes on with {wanted} CPU threads, as the job began, instead of {given}", file=sys.stderr)
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(given)


def share_threads(folder: JobFolder, processes: int = 1) -> None:
    """Give this process, one of so many that we started, its part of the job's threads, the same at every start."""
    torch.set_num_threads(max(1, folder.threads // processes))
