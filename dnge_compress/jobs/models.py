"""The models of a job, opened from where the stages before left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from dnge_compress.checkpoint import load, open_model
from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.errors import DataError, UnsupportedModelError, first_line
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.recipes.job_schema import Job
from dnge_compress.signals.inference import CAUSAL


def original(job: Job) -> nn.Module:
    """The model the job starts from."""
    return _moved(open_model(job.model_name_or_path, dtype=None if job.dtype == "auto" else job.dtype), job)


def base(folder: JobFolder, job: Job) -> nn.Module:
    """What is trained: the pruned model, with its plan as `.dnge`, or the original if nothing is pruned."""
    if job.prune is None:
        return original(job)
    return _moved(load(folder.pruned), job)


def tokenizer_of(job: Job) -> Any:
    """The model's tokenizer. Raises DataError if there is none."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(job.model_name_or_path)
    except (OSError, ValueError) as e:
        raise DataError(f"'{job.model_name_or_path}' has no tokenizer to train with: {first_line(e)}") from None


def refuse_other_tasks(architecture: str, path: str | Path) -> None:
    """Raise UnsupportedModelError for anything but a causal language model."""
    if not architecture.endswith(CAUSAL):
        raise UnsupportedModelError(
            f"a job trains causal language models; '{path}' is a {architecture}: leave out `train`, "
            "or train it with your own loop on what `dnge compress` and `dnge place` give"
        )


def uses_cpu(job: Job) -> bool:
    """Whether the job runs on the CPU: because it says so, or because there is nothing else."""
    return (job.train is not None and job.train.use_cpu) or not torch.accelerator.is_available()


def _moved(model: nn.Module, job: Job) -> nn.Module:
    return model if uses_cpu(job) else model.to(torch.accelerator.current_accelerator())
