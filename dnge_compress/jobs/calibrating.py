"""A job's own rows as what its model is measured on, before it is pruned and where LoRA is placed."""

from __future__ import annotations

import math

import numpy as np

from dnge_compress.data.rows import Collator, Examples
from dnge_compress.jobs import models
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.measuring import batches_of
from dnge_compress.recipes.job_schema import Job
from dnge_compress.signals.user_data import UserData

LEAST_SHARE = 0.25  # of the tokens that the recipe asks for; a repair may fit fewer alone
TOO_FEW = f"the job's rows hold less than {LEAST_SHARE:.0%} of calibration.tokens, so the model's own text calibrates"


def calibration_rows(folder: JobFolder, job: Job, *, is_needed: bool, labels: bool = False) -> UserData | None:
    """Rows to train on, never those held out, evenly spread, of about as many tokens as the recipe asks for; of real
    text, where there is any. None where that is too little to be better than synthetic inputs, unless `is_needed`."""
    settings = job.train
    assert settings is not None
    rows = Examples.load(folder.train_rows)
    real = np.flatnonzero(rows.real).tolist()
    usable = rows.take(real) if real else rows
    tokens, wanted = len(usable.ids), job.calibration.tokens
    if not is_needed and (not real or tokens < LEAST_SHARE * wanted):
        return None
    few = usable.spread(math.ceil(len(usable) * wanted / tokens))
    batches = batches_of(few, Collator.of(models.tokenizer_of(job)), settings.per_device_eval_batch_size)
    kept = tuple({k: v for k, v in batch.items() if labels or k != "labels"} for batch in batches)
    whose = "the job's" if real else "the job's sampled"
    note = f"calibrated on {len(few):,} of {len(usable):,} of {whose} rows to train on, with {len(few.ids):,} tokens"
    return UserData(kept, (note,))
