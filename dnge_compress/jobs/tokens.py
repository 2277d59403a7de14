"""A job's model and tokenizer without the tokens that its rows never use."""

from __future__ import annotations

from itertools import chain
from typing import Any

from dnge_compress import api
from dnge_compress.core.progress import Progress
from dnge_compress.core.wording import count
from dnge_compress.data.texts import texts_of
from dnge_compress.jobs import models
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.recipes.job_schema import Job
from dnge_compress.vocabulary.trim import apply_vocabulary, plan_vocabulary


def cut_tokens(folder: JobFolder, job: Job, progress: Progress) -> list[str]:
    """Leave the smaller model in the job's folder; returns what is to be said about it. Raises DngeErrors."""
    settings = job.vocabulary
    assert settings is not None
    model = models.original(job)
    real = [source for source in (*job.datasets, *job.eval_datasets) if source.type != "sampled"]
    texts = chain.from_iterable(texts_of(source, model) for source in real) if real else None
    how: dict[str, Any] = {"scripts": settings.scripts, "round_to": settings.token_multiple, "progress": progress}
    plan = plan_vocabulary(model, texts, **how)
    api.save(apply_vocabulary(plan, model, inplace=True), folder.fewer_tokens)
    sizes = f"{count(plan.params_before)} → {count(plan.params_after)} parameters"
    said = f"vocabulary: {len(plan.keep):,} of {plan.rows:,} tokens stay ({sizes})"
    return [f"{said}; the original is measured without the rest", *plan.notes]
