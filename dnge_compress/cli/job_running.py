"""The part of `dnge run` that does the work."""

from __future__ import annotations

from argparse import Namespace

from dnge_compress.cli.commands import print_report
from dnge_compress.cli.progress_bars import session
from dnge_compress.core.launcher import is_rank0
from dnge_compress.jobs.running import run
from dnge_compress.recipes.job_schema import Job


def carry_out(job: Job, options: Namespace) -> None:
    """Run a job and print its report; processes that don't lead print nothing."""
    if not is_rank0():
        run(job)
        return
    with session() as progress:
        found = run(job, progress)
    assert found is not None
    print_report(found, options)
