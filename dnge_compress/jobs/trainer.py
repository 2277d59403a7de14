"""transformers' Trainer as a job needs it: exact held-out losses, a teacher if asked, the best kept, and a stop at the
first number that isn't finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments

from dnge_compress.core.errors import DivergedError
from dnge_compress.core.files import write_whole
from dnge_compress.core.folders import atomic_folder
from dnge_compress.data.rows import Collator, Examples
from dnge_compress.jobs.measuring import Batch, batches_of, logits_of, summed_loss
from dnge_compress.recipes.job_schema import Distill

WHOLE = "whole"  # the mark of a checkpoint that was written to its end


class Teaching:
    """The model as it was, and how much to follow it."""

    def __init__(self, teacher: nn.Module, distill: Distill) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.weight, self.temperature, self.is_alone = distill.weight, distill.temperature, distill.is_alone

    def summed(self, logits: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        """KL divergence from the teacher's distribution, summed over the tokens that count."""
        with torch.no_grad():
            taught = logits_of(self.teacher, batch)[:, :-1][counts].float()
        ours = nnf.log_softmax(logits / self.temperature, -1)
        theirs = nnf.log_softmax(taught / self.temperature, -1)
        return nnf.kl_div(ours, theirs, log_target=True, reduction="sum") * self.temperature**2


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a model learns from and is judged by."""

    rows: Examples
    held_out: Examples
    collator: Collator
    teaching: Teaching | None


class JobTrainer(Trainer):
    """Losses are means over tokens, not batches. Whatever evaluation is the best so far, that before the first step
    included, lies in the folder `best`; without one nothing is kept, and no checkpoint either. `tell` hears of the
    steps done and to do. Raises DivergedError, which ends in the `way_out`."""

    loss_is_scaled_for_ga = True  # sums are divided by the tokens of the whole step

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        *,
        course: Course,
        best: Path | None,
        tell: Callable[[int, int, str], None],
        way_out: str,
    ) -> None:
        callbacks = [*([_Marking()] if best is not None else ()), _ProgressCallback(tell)]
        super().__init__(model, arguments, course.collator, course.rows, course.held_out, callbacks=callbacks)
        self.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the report
        self.held_out, self.teaching, self.best, self.way_out = course.held_out, course.teaching, best, way_out
        self._has_broken_loss = False  # in any part of the step
        self.model_accepts_loss_kwargs = True  # so that the tokens of a step are counted over all processes

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A mean over the tokens that count."""
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
        total, count = self._summed_objective(outputs.logits, inputs)
        tokens = num_items_in_batch if num_items_in_batch is not None else count
        # Gradients are averaged over processes, while `tokens` counts those of all.
        loss = total / tokens * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _summed_objective(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What training lowers, summed over the tokens that count, and how many those are."""
        labels = batch["labels"][:, 1:]
        counts = labels >= 0
        logits = logits[:, :-1][counts].float()
        total = logits.new_zeros(())
        share = self.teaching.weight if self.teaching else 0.0
        if share < 1:
            total = total + (1 - share) * nnf.cross_entropy(logits, labels[counts], reduction="sum")
        if self.teaching and share > 0:
            total = total + share * self.teaching.summed(logits, batch, counts)
        return total, counts.sum()

    def training_step(self, model: nn.Module, *arguments: Any, **named: Any) -> Tensor:
        """Forward and backward, before the optimiser takes its step."""
        loss: Tensor = super().training_step(model, *arguments, **named)
        self._has_broken_loss |= not bool(torch.isfinite(loss))
        if self.accelerator.sync_gradients:  # at the end of all parts of a step
            # A scaler in float16 meets infinite gradients, and skips such steps by itself.
            broken = [self._has_broken_loss, not (self.args.fp16 or _has_finite_gradients(model))]
            if self.args.world_size > 1:  # all stop together
                shared = self.accelerator.reduce(torch.tensor(broken, device=self.args.device).float(), reduction="sum")
                broken = (shared > 0).tolist()
            for what, is_broken in zip(("loss", "gradient"), broken, strict=True):
                if is_broken:
                    raise self._diverged(what)
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Nats per token over all held-out rows."""
        loss = self._over_held_out(summed_loss)
        before = [entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry]
        metrics = {"eval_loss": loss}
        self.log(metrics)
        if self.best is not None and all(loss < earlier for earlier in before):
            self._keep(self.best)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def trial_loss(self) -> float:
        """What short trainings are told apart by, per token of all held-out rows: the rows' own loss, or, where a
        teacher alone trains, the divergence from it. That has no part in which token really came, so it tells two
        trainings apart on far fewer rows."""
        is_alone = self.teaching is not None and self.teaching.is_alone
        return self._over_held_out(partial(summed_loss, loss=self._objective) if is_alone else summed_loss)

    def _objective(self, logits: Tensor, batch: Batch) -> tuple[float, int]:
        total, count = self._summed_objective(logits, batch)
        return float(total), int(count)

    def _over_held_out(self, summed: Callable[[nn.Module, Iterable[Batch]], tuple[float, int]]) -> float:
        """A mean over all held-out rows, shared among the processes. Raises DivergedError if it isn't finite."""
        # A sharded model has to be called equally often everywhere, so there all processes do the same.
        rank, processes = (0, 1) if is_sharded(self) else (self.args.process_index, self.args.world_size)
        own = self.held_out.take(range(rank, len(self.held_out), processes))
        assert self.model is not None
        total, count = summed(self.model, batches_of(own, self.data_collator, self.args.per_device_eval_batch_size))
        sums = torch.tensor([total, count], dtype=torch.float64)
        if processes > 1:
            sums = self.accelerator.reduce(sums.float().to(self.args.device), reduction="sum").double().cpu()
        mean = float(sums[0] / sums[1])
        if not math.isfinite(mean):
            raise self._diverged("held-out loss")
        return mean

    def _keep(self, best: Path) -> None:
        with atomic_folder(best) if self.is_world_process_zero() else nullcontext(best) as stage:
            self.save_model(str(stage), _internal_call=True)  # every process calls it; one writes

    def _diverged(self, what: str) -> DivergedError:
        if self.state.global_step == 0 and what == "held-out loss":
            return DivergedError("the held-out loss is not a finite number before the first step; the model is broken")
        return DivergedError(
            f"the {what} is not a finite number at step {self.state.global_step + (what != 'held-out loss')}; "
            + self.way_out
        )


def is_sharded(trainer: Trainer) -> bool:
    """Whether every process holds a part of the model only."""
    return bool(getattr(trainer.accelerator, "is_fsdp2", False))


def _has_finite_gradients(model: nn.Module) -> bool:
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return bool(torch.isfinite(total.full_tensor() if isinstance(total, DTensor) else total))


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

    def __init__(self, tell: Callable[[int, int, str], None]) -> None:
        self.tell, self.note = tell, ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._say(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._say(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        for key, name in (("loss", "loss"), ("eval_loss", "held-out")):
            if logs and key in logs:
                self.note = f"{name} {logs[key]:.3f} at step {state.global_step}"
        self._say(state)

    def _say(self, state: Any) -> None:
        if state.is_world_process_zero:
            self.tell(state.global_step, state.max_steps, self.note)
