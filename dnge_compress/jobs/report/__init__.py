"""The report of a job, and how it looks in a terminal, as Markdown and as a page."""

from dnge_compress.jobs.report.job_report import REPORT, Curve, JobReport, Milestone, Rank, Width, finished, write

__all__ = ["REPORT", "Curve", "JobReport", "Milestone", "Rank", "Width", "finished", "write"]
