"""`dnge run`: the one command that needs the packages of the extra `jobs`."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from dnge_compress.cli.commands import print_report
from dnge_compress.cli.output import print_json
from dnge_compress.cli.progress_bars import session
from dnge_compress.core.document import Cell, Column, Document, Section, Table
from dnge_compress.core.terminal import Drawn
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.launching import is_rank0
from dnge_compress.jobs.running import is_finished, job_of
from dnge_compress.jobs.running import run as run_job
from dnge_compress.jobs.stages import stages_of
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.library import assignments


def run(options: Namespace) -> None:
    """`dnge run RECIPE [KEY=VALUE …]`"""
    job = job_of(options.recipe, assignments(options.overrides))
    if not is_rank0():
        if not options.dry_run:
            run_job(job)
        return
    folder = JobFolder(Path(job.output_dir))
    if is_finished(folder, job):
        print(f"dnge: '{folder.root}' holds this job, finished; nothing was changed", file=sys.stderr)
    else:
        Console(stderr=True).print(Drawn(_stages(job, folder)))
    if options.dry_run:
        if options.json:
            print_json(job.model_dump(mode="json"))
        return
    with session() as progress:
        found = run_job(job, progress)
    assert found is not None
    print_report(found, options)


def _stages(job: Job, folder: JobFolder) -> Document:
    """What the job is going to do, in order."""
    columns = (Column(title="stage", kind="text"), Column(kind="text", is_long=True))
    rows = tuple((Cell(text=stage.name), Cell(text=stage.about, style="quiet")) for stage in stages_of(job))
    sections = (Section("Stages", (Table(columns=columns, rows=rows),)),)
    return Document(title=job.name, facts=(f"→ {folder.root}",), sections=sections)
