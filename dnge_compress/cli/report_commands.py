"""`dnge report`: what was done to a saved model or by a job, again, in the terminal, as JSON or as a page."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from dnge_compress.checkpoint.compression import REPORT, VOCABULARY
from dnge_compress.cli.commands import print_report
from dnge_compress.cli.output import print_html, print_json
from dnge_compress.core.document import Document, Paragraph, Section
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.folders import whole_folder
from dnge_compress.jobs.folder import STATE
from dnge_compress.jobs.report.job_report import JobReport, finished
from dnge_compress.plans.vocabulary_plan import VocabularyPlan
from dnge_compress.report.page import page
from dnge_compress.report.report import Report

Made = Report | JobReport | VocabularyPlan


def report(options: Namespace) -> None:
    """`dnge report OUT [--html]`"""
    found = _reports(whole_folder(Path(options.folder)))
    if options.html:
        print_html(page(_together(found)))
    elif options.json and len(found) > 1:
        pruned, tokens = found
        print_json({**pruned.to_dict(), "vocabulary": tokens.to_dict()})
    else:
        for made in found:
            print_report(made, options)


def _reports(folder: Path) -> list[Made]:
    """What a folder tells of itself: a job; or what was pruned, and which tokens were left after that. Raises
    CheckpointError."""
    if (folder / STATE).is_file():
        return [finished(folder)]
    found: list[Made] = []
    if (folder / REPORT).is_file():
        found.append(Report.read(folder / REPORT))
    if (folder / VOCABULARY).is_file():
        found.append(VocabularyPlan.read(folder / VOCABULARY))
    if not found:
        raise CheckpointError(f"'{folder}' has no {REPORT}, so it wasn't saved by dnge")
    return found


def _together(found: list[Made]) -> Document:
    """One document of all reports, under the head of the first; the heads of others are sections."""
    first, *more = (made.document() for made in found)
    sections = [s for d in more for s in (Section(d.title, (Paragraph(" · ".join(d.facts)),)), *d.sections)]
    return replace(first, eyebrow=first.eyebrow or "Report", sections=(*first.sections, *sections))
