"""`dnge run`: the one command that needs the packages of the extra `jobs`; a dry run doesn't load them."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from dnge_compress.cli.output import print_json
from dnge_compress.core.document import Cell, Column, Document, Facts, Section, Table
from dnge_compress.core.launcher import is_rank0
from dnge_compress.core.progress_bars import loading_libraries
from dnge_compress.core.terminal import Drawn
from dnge_compress.jobs.checking import is_finished, job_of
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.outline import estimate, planned
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.library import assignments


def run(options: Namespace) -> None:
    """`dnge run RECIPE [KEY=VALUE …]`"""
    job = job_of(options.recipe, assignments(options.overrides))
    folder = JobFolder(Path(job.output_dir))
    if is_rank0():
        if is_finished(folder, job):
            print(f"dnge: '{folder.root}' holds this job, finished; nothing was changed", file=sys.stderr)
        else:  # of a dry run that is the answer, of a run what stands before it
            is_answer = options.dry_run and not options.json
            Console(stderr=not is_answer).print(Drawn(_stages(job, folder)))
    if not options.dry_run:
        with loading_libraries():
            from dnge_compress.cli.job_running import carry_out  # here, since torch takes seconds to import
        carry_out(job, options)
    elif options.json and is_rank0():
        print_json(job.model_dump(mode="json"))


def _stages(job: Job, folder: JobFolder) -> Document:
    """What the job is going to do, in order, and about how much that is."""
    columns = (Column(title="stage", kind="text"), Column(kind="text", is_long=True))
    rows = tuple((Cell(text=stage.name), Cell(text=stage.about, style="quiet")) for stage in planned(job))
    sections = [Section("Stages", (Table(columns=columns, rows=rows),))]
    found = estimate(job)
    if found:
        sections.append(Section("Estimate", (Facts(tuple(found.items())),)))
    return Document(title=job.name, facts=(f"→ {folder.root}",), sections=tuple(sections))
