"""What a job would find wrong after minutes of work, looked for before it begins: names that its libraries don't know,
tokenizers, chat templates, and modules of a model without values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from dnge_compress.checkpoint.model_files import embedding_rows, least_bytes, locate, read_config
from dnge_compress.checkpoint.strict_loading import class_of, quiet
from dnge_compress.checkpoint.targets import refuse_closed
from dnge_compress.core.errors import LaunchError, RecipeError, UnknownNameError, first_line
from dnge_compress.core.folders import whole_folder
from dnge_compress.core.launcher import launcher_world
from dnge_compress.data.chat import check_template
from dnge_compress.data.lessons import CONVERSATIONS
from dnge_compress.data.pieces import end_of_text
from dnge_compress.data.row_files import is_on_hub
from dnge_compress.data.sources import settled
from dnge_compress.jobs.checking import refuse_config
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.models import refuse_tokenizer, tokenizer_of, uses_cpu
from dnge_compress.jobs.trackers import refuse_tracker
from dnge_compress.lora.sites import find_sites
from dnge_compress.plans.held import full_path
from dnge_compress.recipes.job_schema import Job


def refuse_hopeless(folder: JobFolder, job: Job) -> None:
    """Raise a DngeError for a job that can't end well: an optimiser or reporter that nobody knows, a tokenizer that
    can't be read or has no chat template where one is needed, modules that the model doesn't have, an output that
    can't be written or has no room. A model of the hub is not fetched for it."""
    base = whole_folder(Path(job.model_name_or_path))
    if job.train is not None:
        if job.launch.num_processes == 1 and launcher_world() is None and not uses_cpu(job):
            refuse_several_devices(torch.cuda.device_count())
        _refuse_optimizer(job.train.optim)
        for reporter in job.train.report_to:
            refuse_tracker(reporter)
    refuse_closed(folder.state, _least_bytes(folder, job, base))
    if base.is_dir():
        if job.train is not None:
            _refuse_tokenizer(job, base)
            if Path(_teacher_of(job)).is_absolute():  # on this machine, or it should be
                refuse_teacher(job)
        _refuse_modules(job, base)


def _refuse_optimizer(name: str) -> None:
    known = [str(optimizer.value) for optimizer in OptimizerNames]
    if name not in known:
        raise UnknownNameError("optimizer", name, known)
    arguments = object.__new__(TrainingArguments)  # whose own way to be made opens a launcher's process group
    arguments.optim = OptimizerNames(name)
    try:
        with quiet():
            Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, RuntimeError) as e:
        raise RecipeError(f"train.optim '{name}' can't be used here ({first_line(e)}); write adamw_torch") from None


def _refuse_tokenizer(job: Job, base: Path) -> None:
    tokenizer, rows = tokenizer_of(job), embedding_rows(read_config(base))
    if rows is not None:
        refuse_tokenizer(tokenizer, rows, base)
    here = (s for s in (*job.datasets, *job.eval_datasets) if s.type != "sampled" and not is_on_hub(s, Path.cwd()))
    kinds = {settled(source, Path.cwd())[0].type for source in here}
    if kinds & set(CONVERSATIONS):
        check_template(tokenizer)
    if kinds - set(CONVERSATIONS):
        end_of_text(tokenizer)


def refuse_several_devices(devices: int) -> None:
    """Raise LaunchError for a single process that sees several."""
    if devices > 1:
        raise LaunchError(
            f"one process would share its batches among {devices} devices by itself; set "
            f"launch.num_processes={devices}, or let it see one of them (CUDA_VISIBLE_DEVICES=0)"
        )


def refuse_teacher(job: Job) -> None:
    """Raise RecipeError for a teacher that answers with other tokens than the model."""
    path = _teacher_of(job)
    theirs, ours = (
        embedding_rows(read_config(locate(place, allow_pickle=False))) for place in (path, job.model_name_or_path)
    )
    if theirs is not None and ours is not None and theirs != ours:
        raise RecipeError(
            f"distill.teacher '{path}' has {theirs:,} tokens, and the model {ours:,}; name one of the same tokenizer"
        )


def refuse_fetched(job: Job) -> None:
    """Raise a DngeError for what a model or a teacher tells only once it is fetched from the hub."""
    is_here = Path(job.model_name_or_path).is_dir()
    if not is_here:
        refuse_config(job, locate(job.model_name_or_path, allow_pickle=False))
    if _teacher_of(job) and not (is_here and Path(_teacher_of(job)).is_absolute()):
        refuse_teacher(job)


def _teacher_of(job: Job) -> str:
    """Who teaches in the place of the original; "" for nobody."""
    return job.distill.teacher if job.distill is not None else ""


def _refuse_modules(job: Job, folder: Path) -> None:
    """Names of modules in the recipe, looked up in the model's class without any values."""
    is_named = job.lora is not None and (job.lora.target_modules != "all-linear" or job.lora.exclude_modules)
    if not is_named and not (job.prune is not None and job.prune.within):
        return
    raw = read_config(folder)
    with quiet(), torch.device("meta"):
        model: Any = class_of(folder, raw, False)._from_config(AutoConfig.from_pretrained(folder))
    if job.lora is not None:
        find_sites(model, job.lora.target_modules, job.lora.exclude_modules)
    if job.prune is not None:
        full_path(job.prune.within, (name for name, _ in model.named_parameters(remove_duplicate=False)))


def _least_bytes(folder: JobFolder, job: Job, base: Path) -> float:
    """What is still to be written at least: the pruned model and the one that is saved, at the size that is left."""
    if job.dtype != "auto" or not base.is_dir():
        return 0
    is_saved = job.train is not None and (job.lora is None or job.save.merge_adapter) and not folder.done("save")
    return least_bytes(base, job.prune) * ((job.prune is not None and not folder.done("prune")) + is_saved)
