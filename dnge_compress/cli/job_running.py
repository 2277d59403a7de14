"""The part of `dnge run` that does the work."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from dnge_compress.cli.commands import print_report
from dnge_compress.cli.progress_bars import session
from dnge_compress.core.launcher import is_rank0
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.running import run
from dnge_compress.recipes.job_schema import Job


def carry_out(job: Job, options: Namespace) -> None:
    """Run a job and print its report; processes that don't lead print nothing."""
    if not is_rank0():
        run(job)
        return
    try:
        with session() as progress:
            found = run(job, progress)
    except KeyboardInterrupt:
        if JobFolder(Path(job.output_dir)).state.is_file():
            print(f"dnge: '{job.output_dir}' keeps what is done; the same command goes on from there", file=sys.stderr)
        raise
    assert found is not None
    print_report(found, options)
