"""One training of a job, in one process or as one of several: transformers' Trainer on the rows the job prepared.

Started again, it goes on from the last whole checkpoint and ends with the same weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.errors import LaunchError, first_line
from dnge_compress.core.files import write_whole
from dnge_compress.core.folders import atomic_folder
from dnge_compress.core.progress import Progress, silent
from dnge_compress.core.strict_json import read_json
from dnge_compress.jobs.data.rows import Collator, Examples
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.measuring import Batch, batches_of, logits_of, summed_loss
from dnge_compress.jobs.models import base, original, refuse_other_tasks, tokenizer_of, uses_cpu
from dnge_compress.lora.attach import attach
from dnge_compress.recipes.job_schema import Distill, Job, Launch, Train

WHOLE = "whole"  # the mark of a checkpoint that was written to its end
NOT_ARGUMENTS = ("max_length", "packing")


def train(folder: JobFolder, job: Job, variant: str = "", progress: Progress = silent) -> dict[str, str]:
    """Train the job's base model, with the adapters of the variant's plan if there is one; leave adapter or model.

    Every process of a training calls this. Returns what did the work: device, processes, strategy. Raises LaunchError
    if that isn't what the recipe asked for.
    """
    settings = job.train
    assert settings is not None
    arguments = _arguments(job, settings, folder.training(variant))
    rows, held_out = Examples.load(folder.train_rows), Examples.load(folder.held_out_rows)
    tokenizer = tokenizer_of(job)
    set_seed(job.seed)
    model: Any = base(folder, job)
    refuse_other_tasks(type(model).__name__, job.model_name_or_path)
    model.config.use_cache = False
    # A whole model trains in float32: bfloat16 would round steps as small as the learning rate's away.
    model = model.float() if job.lora is None else attach(model, folder.read_lora_plan(variant), seed=job.seed)
    teaching = _Teaching(original(job), job.distill) if job.distill else None
    try:
        trainer = _Trainer(
            model, arguments, rows, held_out, Collator.of(tokenizer), teaching, _ProgressCallback(progress, variant)
        )
    except (ValueError, RuntimeError) as e:
        raise LaunchError(f"the training can't start as asked: {first_line(e)}") from e
    obtained = check_launch(trainer, job.launch)
    last = last_whole(folder.training(variant))
    with quiet():
        if last is None or not _is_at_its_end(last):  # resumed there, transformers takes one step too many
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        if trainer.is_world_process_zero():
            _keep(folder, job, variant)
        trainer.accelerator.wait_for_everyone()
    return obtained


def _arguments(job: Job, train: Train, out: Path) -> TrainingArguments:
    """The recipe's `train` section as transformers' arguments."""
    given = train.model_dump(exclude=set(NOT_ARGUMENTS))
    given["use_cpu"] = uses_cpu(job)  # then several processes on CPUs are a group; otherwise they count as none
    if job.launch.strategy == "fsdp2":
        given |= {"fsdp": "full_shard", "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    try:
        with quiet():
            return TrainingArguments(
                output_dir=str(out),
                seed=job.seed,
                data_seed=job.seed,
                save_strategy="steps",
                eval_strategy="steps",
                logging_strategy="steps",
                remove_unused_columns=False,
                disable_tqdm=True,
                logging_nan_inf_filter=False,  # a loss that isn't finite is logged as it is
                **given,
            )
    except (ValueError, TypeError, ImportError, RuntimeError) as e:
        raise LaunchError(f"transformers refuses the train section: {first_line(e)}") from e


def check_launch(trainer: Trainer, launch: Launch) -> dict[str, str]:
    """What the training really runs on. Raises LaunchError if that isn't what was asked for."""
    processes, kind = trainer.accelerator.num_processes, trainer.accelerator.distributed_type.name
    strategy = "single" if kind == "NO" else "ddp" if kind.startswith("MULTI_") else kind.lower()
    if _is_sharded(trainer):
        strategy = "fsdp2"
    if trainer.args.n_gpu > 1:
        raise LaunchError(
            f"one process would share its batches among {trainer.args.n_gpu} devices by itself; set "
            f"launch.num_processes={trainer.args.n_gpu}, or let it see one of them (CUDA_VISIBLE_DEVICES=0)"
        )
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


def _is_sharded(trainer: Trainer) -> bool:
    return bool(getattr(trainer.accelerator, "is_fsdp2", False))


def last_whole(training: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    whole = [p for p in training.glob("checkpoint-*") if (p / WHOLE).is_file()]
    return max(whole, key=_step, default=None)


def clear_torn(training: Path) -> None:
    """Remove checkpoints that a kill left half-written, so that nobody counts or loads them."""
    for path in training.glob("checkpoint-*"):
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class _Teaching:
    """The model as it was, and how much to follow it."""

    def __init__(self, teacher: nn.Module, distill: Distill) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.weight, self.temperature = distill.weight, distill.temperature

    def summed(self, logits: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        """KL divergence from the teacher's distribution, summed over the tokens that count."""
        with torch.no_grad():
            taught = logits_of(self.teacher, batch)[:, :-1][counts].float()
        ours = nnf.log_softmax(logits / self.temperature, -1)
        theirs = nnf.log_softmax(taught / self.temperature, -1)
        return nnf.kl_div(ours, theirs, log_target=True, reduction="sum") * self.temperature**2


class _Trainer(Trainer):
    """Trainer with exact held-out losses (a mean over tokens, not batches) and, if asked, a teacher."""

    loss_is_scaled_for_ga = True  # sums are divided by the tokens of the whole step

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        rows: Examples,
        held_out: Examples,
        collator: Collator,
        teaching: _Teaching | None,
        progress: _ProgressCallback,
    ) -> None:
        callbacks = [_Marking(), progress]
        super().__init__(model, arguments, collator, rows, held_out, callbacks=callbacks)
        self.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the report
        self.held_out, self.teaching = held_out, teaching
        self.model_accepts_loss_kwargs = True  # so that the tokens of a step are counted over all processes

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        labels = inputs["labels"][:, 1:]
        counts = labels >= 0
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
        logits = outputs.logits[:, :-1][counts].float()
        total = logits.new_zeros(())
        share = self.teaching.weight if self.teaching else 0.0
        if share < 1:
            total = total + (1 - share) * nnf.cross_entropy(logits, labels[counts], reduction="sum")
        if self.teaching and share > 0:
            total = total + share * self.teaching.summed(logits, inputs, counts)
        tokens = num_items_in_batch if num_items_in_batch is not None else counts.sum()
        # Gradients are averaged over processes, while `tokens` counts those of all.
        loss = total / tokens * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Nats per token over all held-out rows, shared among the processes."""
        # A sharded model has to be called equally often everywhere, so there all processes do the same.
        rank, processes = (0, 1) if _is_sharded(self) else (self.args.process_index, self.args.world_size)
        own = self.held_out.take(range(rank, len(self.held_out), processes))
        batches = batches_of(own, self.data_collator, self.args.per_device_eval_batch_size)
        assert self.model is not None
        total, count = summed_loss(self.model, batches)
        sums = torch.tensor([total, count], dtype=torch.float64)
        if processes > 1:
            sums = self.accelerator.reduce(sums.float().to(self.args.device), reduction="sum").double().cpu()
        metrics = {"eval_loss": float(sums[0] / sums[1])}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Marking(TrainerCallback):
    """Marks a checkpoint once all of it is on disk; the last step has one, and logs come with every one, so that a
    restart logs alike."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        if control.should_save:
            control.should_log = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        args.distributed_state.wait_for_everyone()  # every process writes its own random state
        if state.is_world_process_zero:
            write_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE, "")


class _ProgressCallback(TrainerCallback):
    """Steps and the loss as they come."""

    def __init__(self, progress: Progress, variant: str) -> None:
        self.progress, self.stage, self.note = progress, f"train {variant}".strip(), ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._say(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._say(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        for key, name in (("loss", "loss"), ("eval_loss", "held-out")):
            if logs and key in logs:
                self.note = f"{name} {logs[key]:.3f}"
        self._say(state)

    def _say(self, state: Any) -> None:
        if state.is_world_process_zero:
            self.progress(self.stage, state.global_step, state.max_steps, self.note)


def _keep(folder: JobFolder, job: Job, variant: str) -> None:
    """Put a trained adapter in its place, and the losses beside; a whole model stays in its last checkpoint."""
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
                shutil.copy2(last / name, stage / name)


def _is_at_its_end(checkpoint: Path) -> bool:
    state = _state_of(checkpoint)
    return bool(state["global_step"] >= state["max_steps"])


def _state_of(checkpoint: Path) -> dict[str, Any]:
    return dict(read_json(checkpoint / TRAINER_STATE_NAME))
