"""The models of a job, opened from where the stages before left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from dnge_compress.checkpoint import load, open_model
from dnge_compress.checkpoint.files import first_line
from dnge_compress.checkpoint.reading import quiet
from dnge_compress.errors import DataError, UnsupportedModelError
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.recipes.job_schema import Job


def original(job: Job) -> nn.Module:
    """The model the job starts from."""
    return _moved(open_model(job.model_name_or_path, dtype=None if job.dtype == "auto" else job.dtype), job)


def base(folder: JobFolder, job: Job) -> nn.Module:
    """What is trained: the pruned model, with its plan as `.dnge`, or the original if nothing is pruned."""
    if job.prune is None:
        return original(job)
    return _moved(load(folder.pruned), job)


def base_path(folder: JobFolder, job: Job) -> str:
    """Where `base` lies."""
    return job.model_name_or_path if job.prune is None else str(folder.pruned)


def tokenizer_of(job: Job) -> Any:
    """The model's tokenizer, padding on the right. Raises DataError if there is none."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(job.model_name_or_path)
    except (OSError, ValueError) as e:
        raise DataError(f"'{job.model_name_or_path}' has no tokenizer to train with: {first_line(e)}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def refuse_other_tasks(model: nn.Module, path: str | Path) -> None:
    """Raise UnsupportedModelError for anything but a causal language model."""
    if not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise UnsupportedModelError(
            f"a job trains causal language models; '{path}' is a {type(model).__name__}: leave out `train`, "
            "or train it with your own loop on what `dnge compress` and `dnge place` give"
        )


def _moved(model: nn.Module, job: Job) -> nn.Module:
    on_accelerator = torch.cuda.is_available() and not (job.train is not None and job.train.use_cpu)
    return model.to("cuda") if on_accelerator else model
