"""One training of a job, in one process or as one of several: transformers' Trainer on the rows the job prepared.

Started again, it goes on from the last whole checkpoint and ends with the same weights.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.errors import DivergedError, LaunchError, first_line
from dnge_compress.core.files import write_whole
from dnge_compress.core.folders import atomic_folder
from dnge_compress.core.progress import Progress, silent
from dnge_compress.core.strict_json import json_values, read_json
from dnge_compress.data.rows import Collator, Examples
from dnge_compress.jobs.checking import refuse_other_tasks
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.models import base, quick, teacher, tokenizer_of, uses_cpu
from dnge_compress.jobs.rates import TRIAL_ROWS, Trial, next_lower, trial_warmup
from dnge_compress.jobs.refusals import refuse_several_devices
from dnge_compress.jobs.trackers import followed
from dnge_compress.jobs.trainer import WHOLE, Course, JobTrainer, Teaching, is_sharded
from dnge_compress.lora.attach import attach
from dnge_compress.recipes.job_schema import Job, Launch, Train

NOT_ARGUMENTS = ("max_length", "packing", "learning_rate")
AGAIN = "run the job again, in another output_dir if something is trained already"


def train(
    folder: JobFolder, job: Job, variant: str = "", progress: Progress = silent, *, trial: Trial | None = None
) -> dict[str, str]:
    """Train the job's base model, with the adapters of the variant's plan if there is one; leave what did best on the
    held-out rows, adapter or model. A `trial` leaves its held-out loss alone.

    Every process of a training calls this. Returns what did the work: device, processes, strategy. Raises LaunchError
    if that isn't what the recipe asked for, DivergedError at the first loss or gradient that isn't finite.
    """
    settings = job.train
    assert settings is not None
    out = folder.training(variant) if trial is None else folder.trial(trial.rate, variant)
    last = last_whole(out)
    rate = folder.read_rate(settings, variant) if trial is None else trial.rate
    rows = Examples.load(folder.train_rows)
    particular = _saving(last) if trial is None else _trying(trial, settings, steps_of(job, len(rows)))
    arguments = _arguments(job, settings, out, learning_rate=rate, **particular)
    set_seed(job.seed)
    model: Any = quick(base(folder, job))
    refuse_other_tasks(type(model).__name__, job.model_name_or_path)
    model.config.use_cache = False
    if job.lora is None:
        # A whole model trains in float32: bfloat16 would round steps as small as the learning rate's away.
        model = model.float()
        model._weight_conversions = []  # checkpoints then keep the module's own names, by which they are read back
    else:
        model = attach(model, folder.read_lora_plan(variant), seed=job.seed)
    held_out = Examples.load(folder.held_out_rows)
    course = Course(
        rows=rows,
        held_out=held_out if trial is None else held_out.spread(TRIAL_ROWS),
        collator=Collator.of(tokenizer_of(job)),
        teaching=Teaching(quick(teacher(job)), job.distill) if job.distill else None,
    )
    stage = f"{'train' if trial is None else 'rate'} {variant}".strip() + (f" {trial.rate:g}" if trial else "")
    best = folder.best(variant) if trial is None else None
    tell = partial(progress, stage)
    try:
        trainer = JobTrainer(model, arguments, course=course, best=best, tell=tell, way_out=_way_out(settings, rate))
    except (ValueError, RuntimeError) as e:
        raise LaunchError(f"the training can't start as asked: {first_line(e)}") from e
    obtained = check_launch(trainer, job.launch)
    with quiet():
        if trial is not None:
            with _enough_memory(settings):
                _try(trainer, folder.trial_loss(trial.rate, variant))
        elif last is None or not _is_at_its_end(last):  # resumed there, transformers takes one step too many
            with followed(settings.report_to), _enough_memory(settings):
                trainer.train(resume_from_checkpoint=str(last) if last else None)
        if trial is None and trainer.is_world_process_zero():
            _keep(folder, job, variant)
        trainer.accelerator.wait_for_everyone()
    return obtained


def _arguments(job: Job, train: Train, out: Path, **more: Any) -> TrainingArguments:
    """The recipe's `train` section as transformers' arguments."""
    given = train.model_dump(exclude=set(NOT_ARGUMENTS)) | {"run_name": f"{job.name or 'job'} {out.name}"} | more
    given["report_to"] = list(given["report_to"])
    given["use_cpu"] = uses_cpu(job)  # then several processes on CPUs are a group; otherwise they count as none
    if job.launch.strategy == "fsdp2":
        given |= {"fsdp": "full_shard", "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    try:
        with quiet():
            return TrainingArguments(
                output_dir=str(out),
                seed=job.seed,
                data_seed=job.seed,
                logging_strategy="steps",
                remove_unused_columns=False,
                disable_tqdm=True,
                logging_nan_inf_filter=False,  # a loss that isn't finite is logged as it is
                **given,
            )
    except (ValueError, TypeError, ImportError, RuntimeError) as e:
        raise LaunchError(f"transformers refuses the train section: {first_line(e)}") from e


def _saving(last: Path | None) -> dict[str, Any]:
    return {"save_strategy": "steps", "eval_strategy": "steps", "eval_on_start": last is None}


def _trying(trial: Trial, settings: Train, steps: int) -> dict[str, Any]:
    """A trial for a training of so many steps."""
    warmup = trial_warmup(settings.warmup_steps, steps, trial.steps)
    schedule = {"max_steps": trial.steps, "warmup_steps": warmup}
    return {"save_strategy": "no", "eval_strategy": "no", "report_to": ["none"], **schedule}


def _way_out(settings: Train, rate: float) -> str:
    """What to write where a training at a rate diverges."""
    if settings.learning_rate == "auto":
        return f"write train.learning_rate: {next_lower(rate):g} instead of auto, which found {rate:g}; {AGAIN}"
    return f"lower train.learning_rate, now {rate:g}, or write auto; {AGAIN}"


@contextmanager
def _enough_memory(settings: Train) -> Iterator[None]:
    """What has no room on a device is a LaunchError with the way out; what was pruned stays of use then."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise LaunchError(
            f"training has too little memory ({first_line(e)}); lower train.per_device_train_batch_size, now "
            f"{settings.per_device_train_batch_size} (or the one for evaluations, "
            f"{settings.per_device_eval_batch_size}), and raise gradient_accumulation_steps, or write "
            f"gradient_checkpointing: true; {AGAIN}"
        ) from e


def _try(trainer: JobTrainer, result: Path) -> None:
    """Train for a little, and write the loss on held-out rows; one that isn't finite counts as infinite."""
    try:
        trainer.train()
        loss = trainer.trial_loss()
    except DivergedError:
        loss = math.inf
    if trainer.is_world_process_zero():
        write_whole(result, json.dumps(json_values(loss)) + "\n")


def check_launch(trainer: Trainer, launch: Launch) -> dict[str, str]:
    """What the training really runs on. Raises LaunchError if that isn't what was asked for."""
    processes, kind = trainer.accelerator.num_processes, trainer.accelerator.distributed_type.name
    strategy = "single" if kind == "NO" else "ddp" if kind.startswith("MULTI_") else kind.lower()
    if is_sharded(trainer):
        strategy = "fsdp2"
    refuse_several_devices(trainer.args.n_gpu)
    if processes != launch.num_processes:
        raise LaunchError(
            f"launch.num_processes asks for {launch.num_processes}, but {processes} train "
            f"({strategy}); start as many, or set launch.num_processes={processes}"
        )
    if launch.strategy == "fsdp2" and strategy != "fsdp2":
        raise LaunchError(
            f"launch.strategy asks for fsdp2, but accelerate gives {strategy} on {trainer.args.device}; "
            "fsdp2 needs accelerators: set launch.strategy=ddp here"
        )
    if strategy not in ("single", "ddp", "fsdp2") or (launch.strategy == "ddp" and strategy == "fsdp2"):
        raise LaunchError(
            f"launch.strategy asks for {launch.strategy}, but accelerate gives {strategy}; set launch.strategy=auto"
        )
    return {"device": str(trainer.args.device), "processes": str(processes), "strategy": strategy}


def last_whole(training: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    whole = [p for p in training.glob("checkpoint-*") if (p / WHOLE).is_file()]
    return max(whole, key=_step, default=None)


def clear_torn(training: Path) -> None:
    """Remove checkpoints that a kill left half-written, so that nobody counts or loads them."""
    for path in training.glob("checkpoint-*"):
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)


def steps_of(job: Job, rows: int) -> int:
    """How many steps the optimiser will take."""
    settings = job.train
    assert settings is not None
    if settings.max_steps > 0:
        return settings.max_steps
    batches = math.ceil(rows / (settings.per_device_train_batch_size * job.launch.num_processes))
    each = math.ceil(batches / settings.gradient_accumulation_steps)
    return math.ceil(each * settings.num_train_epochs)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _keep(folder: JobFolder, job: Job, variant: str) -> None:
    """Put the best adapter in its place, and the losses beside; a whole model stays where the best was kept."""
    last = last_whole(folder.training(variant))
    assert last is not None
    history = _state_of(last)["log_history"]
    curve = {
        "train": [[x["step"], x["loss"]] for x in history if "loss" in x],
        "held_out": [[x["step"], x["eval_loss"]] for x in history if "eval_loss" in x],
    }
    write_whole(folder.curve(variant), json.dumps(curve) + "\n")
    if job.lora is not None:
        with atomic_folder(folder.adapter(variant)) as stage:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy2(folder.best(variant) / name, stage / name)


def _is_at_its_end(checkpoint: Path) -> bool:
    state = _state_of(checkpoint)
    return bool(state["global_step"] >= state["max_steps"])


def _state_of(checkpoint: Path) -> dict[str, Any]:
    return dict(read_json(checkpoint / TRAINER_STATE_NAME))
