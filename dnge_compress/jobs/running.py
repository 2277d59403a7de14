"""Run a job from its recipe: check it, go through the stages that aren't done yet, report."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dnge_compress.core.files import disk_errors
from dnge_compress.core.launcher import is_rank0
from dnge_compress.core.progress import Progress, reporter
from dnge_compress.core.strict_json import read_json, read_strictly
from dnge_compress.core.verbs import verb
from dnge_compress.data.changes import changed
from dnge_compress.jobs.checking import due, is_finished
from dnge_compress.jobs.folder import JobFolder, claim, refuse
from dnge_compress.jobs.launching import follow_leader, same_threads, workers_of
from dnge_compress.jobs.rates import LITTLE
from dnge_compress.jobs.refusals import refuse_fetched, refuse_hopeless
from dnge_compress.jobs.report.job_report import JobReport, finished, write
from dnge_compress.jobs.report.measures import Milestone, Sample
from dnge_compress.jobs.rounds import names, whole_widths
from dnge_compress.jobs.stages import Stage, Work, stages_of, stages_that_saw_data, timed
from dnge_compress.lora.rank_grid import Rank
from dnge_compress.plans.sensitivity import Sensitivity
from dnge_compress.plans.space_rows import SpaceRow
from dnge_compress.recipes.job_schema import Job
from dnge_compress.report.plots import Curve

NOTED = (("vocabulary", "data"), ("prune", "place"))  # stages, before and behind what is said of training
VERSIONS = ("dnge-compress", "torch", "transformers", "peft", "accelerate", "datasets")


@verb
def run(job: Job, progress: Progress | bool = False) -> JobReport | None:
    """Carry out what isn't done yet, and report. A finished job is read from its folder and nothing is changed.

    Killed at any moment, a run can be started again and ends with the same result. Under an outer launcher
    (torchrun, accelerate launch) every process calls this; those that don't lead get None.

        report = run(job_of("jobs/prune-recover", {"model_name_or_path": "gpt2", "output_dir": "out"}))
    """
    folder, progress = JobFolder(Path(job.output_dir)), reporter(progress)
    refuse(folder, job)
    if is_finished(folder, job):
        return finished(folder.root) if is_rank0() else None
    if not is_rank0():
        follow_leader(folder, job)
        return None
    refuse_hopeless(folder, job)
    claimed = claim(folder, job, versions(), torch.get_num_threads())
    with disk_errors(folder.root), claimed, same_threads(folder):
        refuse_fetched(job)
        _forget_changed(folder, job)
        workers = workers_of(folder, job, progress)
        work = Work(given=job, folder=folder, workers=workers, progress=progress)
        stages, wanted = stages_of(job), due(folder, job)
        for stage in stages:
            if stage.name in wanted:
                folder.finish(stage.name, timed(stage, work))
        workers.shutdown()  # not after a failure: the launcher ends the others, who may wait for us elsewhere
        report = _report(folder, job, stages)
        write(report, folder.root)
    return report


def _forget_changed(folder: JobFolder, job: Job) -> None:
    """Start those stages over that saw files which are no longer what they were, and say so."""
    first = "data" if folder.done("data") else "vocabulary"
    facts = folder.done(first) or {}
    file = changed([*job.datasets, *job.eval_datasets], Path.cwd(), facts["files"]) if "files" in facts else None
    if file is None:
        return
    again = sorted(stages_that_saw_data(job), key=lambda name: name != first)  # whose facts tell, is forgotten last
    print(f"dnge: '{file}' changed since this job was stopped; {', '.join(again)} start over", file=sys.stderr)
    folder.forget(again, ("", *job.compare))


def versions() -> dict[str, str]:
    """What is installed, for the record."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _report(folder: JobFolder, job: Job, stages: list[Stage]) -> JobReport:
    done = folder.read()["stages"]
    data, trained = done.get("data", {}), done.get("train", {})
    variants = ("", *job.compare) if job.train is not None else ()
    rounds = [*names(job), "prune"]
    early = [_curve(done[name]["curve"], f"trained in {name}") for name in names(job)]
    adapters = folder.read_lora_plan().adapters if job.lora is not None else ()
    parts = ((part, data.get(part, {})) for part in ("train", "held_out"))
    counts = {f"{part} {name}": count for part, found in parts for name, count in found.items() if count}
    return JobReport(
        name=job.name,
        model=job.model_name_or_path,
        output_dir=str(folder.root),
        stages=tuple(stage.name for stage in stages),
        seconds={stage.name: done[stage.name]["seconds"] for stage in stages},
        milestones=tuple(read_strictly(Milestone, m, "a milestone") for m in _milestones(job, done)),
        widths=whole_widths([SpaceRow(**row) for row in done.get(name, {}).get("widths", ())] for name in rounds),
        sensitivity=tuple(Sensitivity(**found) for found in done.get("prune", {}).get("sensitivity", ())),
        ranks=tuple(Rank(a.site.path, a.rank, a.params) for a in adapters),
        curves=(*(_curve(read_json(folder.curve(v)), f"trained, {v}" if v else "trained") for v in variants), *early),
        samples=tuple(read_strictly(Sample, s, "a sample") for s in done["measure"].get("samples", ())),
        rows=counts,
        machine=trained.get("machine", {}) | {"threads": str(folder.threads)} | versions(),
        notes=_notes(job, done),
    )


def _notes(job: Job, done: Mapping[str, Any]) -> tuple[str, ...]:
    """What the stages said, how the learning rate was found, and what the held-out rows can't say."""
    first, last = ([note for stage in part for note in done.get(stage, {}).get("notes", ())] for part in NOTED)
    early = (f"{name}: {note}" for name in names(job) for note in done[name]["notes"] if note not in last)
    return (*first, *_of_training(job, done), *early, *last)


def _of_training(job: Job, done: Mapping[str, Any]) -> Iterator[str]:
    if job.train is not None and job.train.learning_rate == "auto":
        rate = done["rate"]
        is_taught = job.distill is not None and job.distill.is_alone
        by = f"the {'divergence from the teacher' if is_taught else 'loss'} on held-out rows"
        for variant, found in {"": rate, **rate["compared"]}.items():
            tried = ", ".join(
                f"{x:g} ({loss if isinstance(loss, str) else f'{loss:.5g}'})" for x, loss in found["tried"]
            )
            whose = f" of the compared placement {variant}:" if variant else ""
            chosen = f"learning rate{whose} {found['learning_rate']:g}"
            yield f"{chosen}, by {by} after {rate['steps']} steps: {tried}{_higher(found, rate['longer'])}"
    if job.datasets and not job.eval_datasets and all(source.type == "sampled" for source in job.datasets):
        yield "the held-out rows are the model's own text, too; give eval_datasets to see the loss on yours"


def _higher(found: Mapping[str, Any], longer: float) -> str:
    """Why a rate was taken that wasn't the best of those tried, if it wasn't."""
    losses = {rate: float(loss) for rate, loss in found["tried"]}
    best = min(losses, key=losses.__getitem__)
    if losses[found["learning_rate"]] == losses[best]:
        return ""
    return (
        f"; {best:g} is best there, and a training {longer:.3g} times as long takes a higher rate that loses at most "
        f"{LITTLE:g} nats by it"
    )


def _milestones(job: Job, done: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Those of the last round, and what each round before it left, without its speed, which was measured apart."""
    first, *rest = done["measure"]["milestones"]
    yield first
    for name in names(job):
        trained = done[name]["milestones"][-1]
        yield {**trained, "name": name, "tokens_per_second": None, "speed_noise": None}
    yield from rest


def _curve(raw: Mapping[str, Any], name: str) -> Curve:
    train, held_out = (tuple((int(step), float(loss)) for step, loss in raw[key]) for key in ("train", "held_out"))
    return Curve(name, train, held_out)
