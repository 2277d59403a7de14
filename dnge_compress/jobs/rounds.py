"""Rounds before a job's last: each a job in a folder below, which prunes a share, recovers, and leaves its model."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.files import atomic_file, write_whole
from dnge_compress.jobs.folder import VERSION, JobFolder, identity, is_of_a_start, outlive_workers
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.library import validate
from dnge_compress.recipes.schema import Prune

if TYPE_CHECKING:
    from dnge_compress.plans.space_rows import SpaceRow


def names(job: Job) -> list[str]:
    """The stages that the early rounds of a job are: "round 1", …"""
    return [f"round {number}" for number in range(1, job.rounds)]


def share(job: Job) -> Prune:
    """What every round prunes: of what is left, such a ratio that all rounds together take the job's."""
    assert job.prune is not None
    return job.prune.at(1 - (1 - job.prune.ratio) ** (1 / job.rounds)) if job.rounds > 1 else job.prune


def of_round(folder: JobFolder, job: Job, number: int) -> tuple[JobFolder, Job]:
    """Folder and job of an early round; of the last, which is number 0, those of the job itself."""
    job = with_fewer_tokens(folder, job)
    if number == 0:
        return folder, job
    inner, raw = folder.round(number), job.model_dump()
    raw |= {"name": f"{job.name}, round {number}", "output_dir": str(inner.root), "rounds": 1, "compare": ()}
    raw |= {"model_name_or_path": start_of(folder, job, number), "prune": share(job).model_dump()}
    raw["save"] = {"merge_adapter": True}
    if raw["distill"] is not None:
        raw["distill"]["teacher"] = raw["distill"]["teacher"] or job.model_name_or_path
    return inner, validate(raw, "the job", kind=Job)


def with_fewer_tokens(folder: JobFolder, job: Job) -> Job:
    """The job as it goes on once tokens have left: with the model that has fewer of them, where there is one."""
    if job.vocabulary is None:
        return job
    return job.model_copy(update={"model_name_or_path": str(folder.fewer_tokens), "vocabulary": None})


def start_of(folder: JobFolder, job: Job, number: int = 0) -> str:
    """What a round prunes: what the round before it left, or the original."""
    before = (number or job.rounds) - 1
    return str(folder.round(before).model) if before else job.model_name_or_path


def begin(outer: JobFolder, inner: JobFolder, job: Job) -> None:
    """Make a round's folder, with the rows of the whole job. What another recipe left there goes. Raises
    CheckpointError where processes of a killed run don't end there, and for a folder that is somebody else's."""
    own, recipe = identity(job, outer.root), yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
    if inner.root.is_dir():
        if not inner.state.is_file() and any(not _is_begun(path) for path in inner.root.iterdir()):
            raise CheckpointError(f"'{inner.root}' holds no round of ours; move it, or name another output_dir")
        outlive_workers(inner)
    if inner.read()["identity"] == own:
        write_whole(inner.recipe, recipe)  # whose paths may have moved with the job
        return
    if inner.root.is_dir():
        inner.remove()
    inner.train_rows.parent.mkdir(parents=True)
    for theirs, ours in ((outer.train_rows, inner.train_rows), (outer.held_out_rows, inner.held_out_rows)):
        with atomic_file(ours) as part:
            shutil.copyfile(theirs, part)
    write_whole(inner.recipe, recipe)
    data = {"data": dict(outer.done("data") or {})}
    record = {"dnge_job": VERSION, "identity": own, "threads": outer.threads, "stages": data}
    inner.write(record)


def _is_begun(path: Path) -> bool:
    """Whether a `begin` that was killed may have left this."""
    return path.name == "data" or is_of_a_start(path)


def whole_widths(rounds: Iterable[Iterable[SpaceRow]]) -> tuple[SpaceRow, ...]:
    """What the last round left, against what the first began with; of the last round alone where a block went before
    it, since those behind have other names then."""
    all_rows = [tuple(rows) for rows in rounds]
    if any(row.kind == "layer" and row.kept < row.total for rows in all_rows[:-1] for row in rows):
        return all_rows[-1]
    first: dict[str, SpaceRow] = {}
    for rows in all_rows:
        for row in rows:
            first.setdefault(row.space, row)
    before = ((row, first[row.space]) for row in all_rows[-1])
    return tuple(replace(row, total=old.total, params_before=old.params_before) for row, old in before)
