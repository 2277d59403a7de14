"""The models of a job side by side: loss on held-out rows, size, speed, and what they write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import nn

from dnge_compress.core.progress import Progress
from dnge_compress.core.strict_json import json_values
from dnge_compress.data.rows import Collator, Examples
from dnge_compress.jobs import models
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.measuring import Batch, batches_of, milestone_of, speeds_of, summed_loss
from dnge_compress.jobs.report.measures import ORIGINAL, PRUNED, TRAINED, Milestone, Sample
from dnge_compress.jobs.samples import beginnings_of, continuation_of, continued
from dnge_compress.recipes.job_schema import Job
from dnge_compress.report.speeds import Shape, shape_of
from dnge_compress.signals.positions import positions_of


def milestones_of(folder: JobFolder, job: Job, progress: Progress) -> Mapping[str, Any]:
    """Milestones of the original, the pruned and every trained model, samples of what they write, and `is_better`:
    whether training made a better one of what it began with. If it didn't, that is the milestone "trained" as well."""
    openers: dict[str, Callable[[], nn.Module]] = {ORIGINAL: lambda: models.original(job)}
    if job.prune is not None:
        openers[PRUNED] = lambda: models.base(folder, job)
    if job.train is not None:
        openers[TRAINED] = partial(models.trained, folder, job)
        openers |= {f"{TRAINED}, {variant}": partial(models.trained, folder, job, variant) for variant in job.compare}
    batches = _held_out_batches(folder, job) if job.train is not None else None
    texts = _Texts(folder, job) if job.train is not None else None
    found: dict[str, Milestone] = {}
    shapes: dict[str, Shape] = {}
    one_of_each: dict[Shape, nn.Module] = {}  # what has the same shape is equally fast
    for i, (name, open_it) in enumerate(openers.items()):
        progress("measure", i, len(openers))
        model = open_it()
        found[name], shapes[name] = milestone_of(name, model, _loss(model, batches)), shape_of(model)
        if batches is not None and texts is not None:
            one_of_each.setdefault(shapes[name], model)
            texts.add(name, model)
    if batches is not None:
        speeds = dict(zip(one_of_each, speeds_of([*one_of_each.values()], batches[0]), strict=True))
        found = {name: replace(m, **asdict(speeds[shapes[name]])) for name, m in found.items()}
    progress("measure", len(openers), len(openers))
    facts: dict[str, Any] = {}
    if TRAINED in found:
        start = found[PRUNED if PRUNED in found else ORIGINAL]
        trained = found[TRAINED]
        facts = {"trained_loss": trained.loss, "is_better": _is_below(trained.loss, start.loss)}
        if not facts["is_better"]:
            found[TRAINED] = replace(start, name=TRAINED)
            if texts is not None:
                texts.replace(TRAINED, by=start.name)
    samples = texts.samples() if texts is not None else ()
    return {**facts, "milestones": [json_values(m) for m in found.values()], "samples": [asdict(s) for s in samples]}


def _held_out_batches(folder: JobFolder, job: Job) -> list[Batch]:
    settings = job.train
    assert settings is not None
    collate = Collator.of(models.tokenizer_of(job))
    return list(batches_of(Examples.load(folder.held_out_rows), collate, settings.per_device_eval_batch_size))


def _loss(model: nn.Module, batches: Sequence[Batch] | None) -> float | None:
    if batches is None:
        return None
    total, count = summed_loss(model, batches)
    return total / count if count else math.nan


class _Texts:
    """How every model measured goes on after the same beginnings."""

    def __init__(self, folder: JobFolder, job: Job) -> None:
        self.tokenizer = models.tokenizer_of(job)
        self.rows = Examples.load(folder.held_out_rows)
        self.beginnings: list[list[int]] = []
        self.by_model: dict[str, list[str]] = {}

    def add(self, name: str, model: nn.Module) -> None:
        positions = positions_of(model)  # the same for all models of a job
        self.beginnings = self.beginnings or beginnings_of(self.rows, positions)
        tokens = continuation_of(positions)
        self.by_model[name] = [continued(model, ids, self.tokenizer, tokens) for ids in self.beginnings]

    def replace(self, name: str, by: str) -> None:
        """Take what one model wrote for what another did."""
        self.by_model[name] = self.by_model[by]

    def samples(self) -> list[Sample]:
        return [
            Sample(self.tokenizer.decode(ids), {name: texts[i] for name, texts in self.by_model.items()})
            for i, ids in enumerate(self.beginnings)
        ]


def _is_below(loss: float | None, start: float | None) -> bool:
    return loss is not None and start is not None and loss < start
