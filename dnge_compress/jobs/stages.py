"""The stages of a job. Each reads what those before it left in the folder, leaves its own there, and returns facts to
record; a stage that was cut short is simply run again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dnge_compress import api
from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.files import write_whole
from dnge_compress.core.folders import atomic_folder
from dnge_compress.core.progress import Progress
from dnge_compress.core.strict_json import json_values, read_json
from dnge_compress.data.changes import marks_of
from dnge_compress.data.reading import read_rows
from dnge_compress.data.rows import Examples
from dnge_compress.data.sampling import sample_rows
from dnge_compress.data.splitting import split_rows
from dnge_compress.jobs import models, rates, rounds
from dnge_compress.jobs.calibrating import TOO_FEW, calibration_rows
from dnge_compress.jobs.checking import due, refuse_other_tasks
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.launching import Workers, workers_of
from dnge_compress.jobs.milestones import milestones_of
from dnge_compress.jobs.outline import stage_names
from dnge_compress.jobs.tokens import cut_tokens
from dnge_compress.jobs.training import clear_torn, steps_of
from dnge_compress.lora.place import flatten_adapter, place_lora
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.recipes.data_schema import Dataset
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.lora_schema import Lora, LoraBudget, LoraRecipe
from dnge_compress.recipes.methods import PLACERS, SCORERS
from dnge_compress.recipes.schema import Recipe

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every stage has: the job as it was `given`, and as it goes on where tokens leave its model (`job`)."""

    given: Job
    folder: JobFolder
    workers: Workers
    progress: Progress

    @property
    def job(self) -> Job:
        """With the model that has fewer tokens, if the job asks for one."""
        return rounds.with_fewer_tokens(self.folder, self.given)


@dataclass(frozen=True)
class Stage:
    """A named piece of a job."""

    name: str
    run: Callable[[Work], Facts]


def stages_of(job: Job) -> list[Stage]:
    """What a job will do, in order."""
    runs: dict[str, Callable[[Work], Facts]] = {"vocabulary": vocabulary, "data": data, "prune": prune, "place": place}
    runs |= {"rate": rate, "measure": measure, "save": save}
    runs |= {name: partial(early_round, number=number) for number, name in enumerate(rounds.names(job), 1)}
    return [
        Stage(name, runs.get(name) or partial(train, variant=name.removeprefix("train").strip()))
        for name in stage_names(job)
    ]


def stages_that_saw_data(job: Job) -> list[str]:
    """The stages whose results depend on the rows; pruning and placing do by scorers and placers that look at them, and
    where their model does: by tokens that left, or by the training of an earlier round."""
    has_seen = job.vocabulary is not None or job.rounds > 1
    sees = {
        "prune": job.prune is not None
        and (has_seen or _prunes_on_rows(job) or SCORERS.usable(job.scorer, True).NEEDS_DATA),
        "place": job.lora is not None
        and any(PLACERS.usable(placer, True).NEEDS_DATA for placer in (job.lora.placer, *job.compare)),
    }
    sees["place"] = sees["place"] or sees["prune"] or has_seen
    return [stage.name for stage in stages_of(job) if sees.get(stage.name, True)]


def vocabulary(work: Work) -> Facts:
    """Take tokens that nobody uses out of model and tokenizer."""
    files = marks_of([*work.given.datasets, *work.given.eval_datasets], Path.cwd())
    return {"notes": cut_tokens(work.folder, work.given, work.progress), "files": files}


def data(work: Work) -> Facts:
    """Tokenise the rows, hold some out, store both."""
    job = work.job
    settings = job.train
    assert settings is not None
    tokenizer = models.tokenizer_of(job)
    files = marks_of([*job.datasets, *job.eval_datasets], Path.cwd())

    def sampled(tokens: int) -> list[list[int]]:
        model = models.quick(models.original(job))
        refuse_other_tasks(type(model).__name__, job.model_name_or_path)
        progress = _told_as(work, "sample")
        return sample_rows(model, tokens, length=settings.max_length, seed=job.seed, progress=progress)

    def rows_of(sources: tuple[Dataset, ...]) -> Any:
        return read_rows(
            sources,
            tokenizer,
            max_length=settings.max_length,
            packing=settings.packing,
            folder=Path.cwd(),
            sampled=sampled,
        )

    rows = rows_of(job.datasets)
    if job.eval_datasets:
        held_out = rows_of(job.eval_datasets)
    else:
        rows, held_out = split_rows(rows, job.eval_fraction, job.seed)
    for part in (rows, held_out):
        models.refuse_unknown_tokens(job, tokenizer, part.examples.ids)
    rows.examples.save(work.folder.train_rows)
    held_out.examples.save(work.folder.held_out_rows)
    notes = [*dict.fromkeys((*rows.notes, *held_out.notes))]
    return {"train": dict(rows.counts), "held_out": dict(held_out.counts), "files": files, "notes": notes}


def early_round(work: Work, number: int) -> Facts:
    """Prune a share and recover, as a job of its own that begins with the rows of this one."""
    folder, job = rounds.of_round(work.folder, work.given, number)
    rounds.begin(work.folder, folder, job)
    inner = replace(work, given=job, folder=folder, workers=workers_of(work.folder, work.given, work.progress, number))
    wanted = due(folder, job)
    for stage in stages_of(job):
        if stage.name in wanted:
            folder.finish(stage.name, timed(stage, inner))
    pruned, measured = folder.done("prune") or {}, folder.done("measure") or {}
    found = {"widths": pruned["widths"], "notes": pruned["notes"], "milestones": measured["milestones"]}
    return found | {"curve": read_json(folder.curve())}


def prune(work: Work) -> Facts:
    """Compress the original and save it with plan and report."""
    job = work.job
    assert job.prune is not None
    recipe = Recipe(
        name=job.name,
        about=job.about,
        scorer=job.scorer,
        calibration=job.calibration,
        prune=rounds.share(job),
        repair=job.repair,
        check=job.check,
    )
    model = models.opened(rounds.start_of(work.folder, job), job)
    needed = SCORERS.usable(job.scorer, bool(job.datasets)).NEEDS_DATA
    rows = calibration_rows(work.folder, job, is_needed=needed) if needed or _prunes_on_rows(job) else None
    small: Any = api.compress(model, recipe, data=rows, inplace=True, progress=work.progress)
    api.save(small, work.folder.pruned)
    notes = list(small.dnge.plan.notes)
    if rows is None and _prunes_on_rows(job):
        notes.insert(0, TOO_FEW)
    sensitivity = [asdict(found) for found in small.dnge.report.sensitivity]
    return {"widths": [asdict(row) for row in small.dnge.report.rows], "sensitivity": sensitivity, "notes": notes}


def place(work: Work) -> Facts:
    """Decide where LoRA goes: the job's own placement, and those to compare at the same number of parameters."""
    job, folder = work.job, work.folder
    assert job.lora is not None
    model = models.base(folder, job)

    def placed(lora: Lora) -> LoraPlan:
        recipe = LoraRecipe(name=job.name, calibration=job.calibration, lora=lora)
        needed = PLACERS.usable(lora.placer, bool(job.datasets)).NEEDS_DATA
        rows = calibration_rows(folder, job, is_needed=True, labels=True) if needed else None
        return place_lora(model, recipe, data=rows, progress=work.progress)

    own = placed(job.lora)
    own.verify(model)
    write_whole(folder.lora_plan(), own.to_json())
    notes = [f"{own.params:,} trainable parameters", *own.notes]
    for variant in job.compare:
        changes: dict[str, Any] = {"placer": variant, "budget": LoraBudget(trainable_params=own.params)}
        other = placed(Lora(**{**dict(job.lora), **changes}))
        write_whole(folder.lora_plan(variant), other.to_json())
        notes += [f"compared placement {variant}: {other.params:,} trainable parameters", *other.notes]
    return {"params": own.params, "notes": notes}


def rate(work: Work) -> Facts:
    """Find a learning rate for this model, these rows and this kind of training, for each placement its own."""
    job, folder = work.job, work.folder
    whole = steps_of(job, len(Examples.load(folder.train_rows)))
    steps = rates.trial_steps(whole)

    def found(variant: str, first: float) -> dict[str, Any]:
        def loss_at(rate: float) -> float:
            work.workers.train(variant, rates.Trial(rate, steps))
            return float(read_json(folder.trial_loss(rate, variant)))

        chosen, losses = rates.find_rate(loss_at, first, whole / steps)
        return {"learning_rate": chosen, "tried": [[rate, json_values(loss)] for rate, loss in losses.items()]}

    own = found("", rates.FIRST_WHOLE if job.lora is None else rates.FIRST_LORA)
    compared = {variant: found(variant, own["learning_rate"]) for variant in job.compare}
    shutil.rmtree(folder.trials)
    return {**own, "compared": compared, "steps": steps, "longer": whole / steps}


def train(work: Work, variant: str) -> Facts:
    """Train, alone or with others."""
    clear_torn(work.folder.training(variant))
    return {"machine": work.workers.train(variant, None)}


def measure(work: Work) -> Facts:
    """The original, the pruned and every trained model by the same measures; and whether training made a better one."""
    return milestones_of(work.folder, work.job, work.progress)


def save(work: Work) -> Facts:
    """The best model as an ordinary checkpoint, merged if it was trained by LoRA; and the flat adapter."""
    job, folder = work.job, work.folder
    measured = folder.done("measure")
    assert measured is not None
    if job.lora is None or job.save.merge_adapter:
        _keep_model((models.trained if measured["is_better"] else models.base)(folder, job), work)
    if job.lora is not None and job.save.flat_adapter:
        with atomic_folder(folder.flat_adapter) as stage:
            flatten_adapter(folder.adapter(), stage)
    return {}


def timed(stage: Stage, work: Work) -> Facts:
    """Run a stage; its facts and its seconds."""
    started = time.perf_counter()
    work.progress(stage.name, 0, 0)
    facts = stage.run(work)
    work.progress(stage.name, 1, 1)
    return {**facts, "seconds": round(time.perf_counter() - started, 3)}


def _keep_model(model: Any, work: Work) -> None:
    job, folder = work.job, work.folder
    if job.prune is not None:
        api.save(model, folder.model)
        return
    with atomic_folder(folder.model) as stage, quiet():
        model.save_pretrained(stage)
        models.tokenizer_of(job).save_pretrained(stage)


def _prunes_on_rows(job: Job) -> bool:
    return job.calibrate_on == "rows" and job.has_real_rows


def _told_as(work: Work, name: str) -> Progress:
    return lambda stage, done, total, note="": work.progress(name, done, total, note)
