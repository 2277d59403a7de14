"""The models of a job, opened from where the stages before left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from dnge_compress.checkpoint import check_weights, load, open_model
from dnge_compress.checkpoint.model_files import embedding_rows, locate, read_config
from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.errors import CheckpointError, DataError
from dnge_compress.core.precision import has_bfloat16
from dnge_compress.graph.vocabulary import refuse_unknown
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.lora.attach import merged
from dnge_compress.recipes.job_schema import Job
from dnge_compress.signals.tokenizer import needed_tokenizer


def original(job: Job) -> nn.Module:
    """The model the job starts from. Raises WeightError where it is damaged, as `compress` does."""
    return opened(job.model_name_or_path, job)


def opened(path: str, job: Job) -> nn.Module:
    """The model of a folder or hub id, in the job's precision and where it runs. Raises WeightError."""
    model = open_model(path, dtype=None if job.dtype == "auto" else job.dtype)
    check_weights(model)
    return _moved(model, job)


def teacher(job: Job) -> nn.Module:
    """Who teaches: the model named, or the original."""
    assert job.distill is not None
    return opened(job.distill.teacher or job.model_name_or_path, job)


def base(folder: JobFolder, job: Job) -> nn.Module:
    """What is trained: the pruned model, with its plan as `.dnge`, or the original if nothing is pruned."""
    if job.prune is None:
        return original(job)
    return _moved(load(folder.pruned), job)


def trained(folder: JobFolder, job: Job, variant: str = "") -> nn.Module:
    """The trained model in the base's own dtype; merged in float32, so that nothing small is rounded away first."""
    model: Any = base(folder, job)
    if job.lora is not None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        whole = merged(model.float(), folder.adapter(variant))
        for name, tensor in (*whole.named_parameters(), *whole.named_buffers()):  # not all of one dtype: rotary tables
            tensor.data = tensor.data.to(dtypes[name])
        return whole
    best = folder.best(variant)
    weights = {k: v for file in best.glob("*.safetensors") for k, v in load_file(file).items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or set(missing) - set(model.get_expanded_tied_weights_keys(all_submodels=True)):
        raise CheckpointError(f"'{best}' doesn't fit the model it was trained from; delete the folder")
    model.tie_weights()
    return model


def quick(model: nn.Module) -> nn.Module:
    """The model in float32 where it lies on a processor without instructions for its own precision, which would take
    twenty times as long."""
    parameter = next(model.parameters())
    is_slow = parameter.dtype == torch.float16 or (parameter.dtype == torch.bfloat16 and not has_bfloat16())
    return model.float() if parameter.device.type == "cpu" and is_slow else model


def tokenizer_of(job: Job) -> Any:
    """The model's tokenizer. Raises DataError if there is none."""
    with quiet():
        return needed_tokenizer(job.model_name_or_path, "to train with")


def refuse_tokenizer(tokenizer: Any, rows: int, path: str | Path) -> None:
    """Raise DataError if text, or padding, can give a token for which a model of so many `rows` has no embedding.

    Control tokens beyond them do no harm until some row holds one: Gemma 3's texts come without its token for images.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    harmless = set(tokenizer.all_special_tokens) - {tokenizer.pad_token}
    wrong = min((t for t in beyond if t not in harmless), key=beyond.__getitem__, default=None)
    if wrong is not None:
        raise DataError(
            f"the tokenizer of '{path}' has {len(beyond):,} token{'s'[: len(beyond) > 1]} more than the model's "
            f"{rows:,} rows ('{wrong}' is {beyond[wrong]}); save the model with resized embeddings, or the tokenizer "
            "without them"
        )


def refuse_unknown_tokens(job: Job, tokenizer: Any, ids: Any) -> None:
    """Raise DataError if rows hold a token for which the model has no embedding."""
    rows = embedding_rows(read_config(locate(job.model_name_or_path, allow_pickle=False)))
    if rows is not None:
        refuse_unknown("the rows hold", int(ids.max()), rows=rows, tokenizer=tokenizer)


def uses_cpu(job: Job) -> bool:
    """Whether the job runs on the CPU: because it says so, or because there is nothing else."""
    return (job.train is not None and job.train.use_cpu) or not torch.accelerator.is_available()


def _moved(model: nn.Module, job: Job) -> nn.Module:
    return model if uses_cpu(job) else model.to(torch.accelerator.current_accelerator())
