"""Tasks of lm-evaluation-harness (EleutherAI), which answers them by its own public API; an extra."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnge_compress.core.document import Cell, Column, Section, Table
from dnge_compress.core.errors import DataError, first_line, nearest
from dnge_compress.core.wording import NO_HARNESS
from dnge_compress.jobs.asked_tasks import Tasks
from dnge_compress.signals.inference import inference_mode_of, writes_text
from dnge_compress.signals.tokenizer import needed_tokenizer

BATCH = 8  # requests at once
RESAMPLES = 1000  # for the standard error of what is no mean
PLAIN = "none"  # what the harness calls the filter that changes no answer


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task for every model, with standard errors, where the harness knows them."""

    task: str
    metric: str
    values: tuple[float, ...]
    errors: tuple[float | None, ...]


def task_scores(models: Sequence[Any], tasks: Tasks) -> tuple[TaskScore, ...]:
    """Every metric of the tasks for some causal language models, which are left as they are.

    Raises DataError where the harness isn't installed, a model writes no text or has no tokenizer, a task is unknown,
    or its questions can't be read.
    """
    with _unnoticed():
        harness, tokenizers = _installed(), [_tokenizer_of(model) for model in models]
        manager = harness.tasks.TaskManager(include_path=None if tasks.folder is None else str(tasks.folder))
        for name in tasks.names:
            if name not in manager.all_tasks:
                raise DataError(f"unknown task '{name}'; {nearest(name, manager.all_tasks)}")
        found = [_results(harness, *pair, tasks, manager) for pair in zip(models, tokenizers, strict=True)]
    return tuple(
        TaskScore(
            task=task,
            metric=_spoken(key),
            values=tuple(float(own[task][key]) for own in found),
            errors=tuple(_number(own[task].get(_error_key(key))) for own in found),
        )
        for task, scores in found[0].items()
        for key, value in scores.items()
        if "," in key and "_stderr," not in key and _number(value) is not None
    )


def section(scores: Sequence[TaskScore], names: Sequence[str]) -> Section | None:
    """A table with a row for each metric and a column for each of the named models."""
    if not scores:
        return None
    columns = (
        Column(title="task", kind="text"),
        Column(title="metric", kind="text"),
        *(Column(title=n) for n in names),
    )
    rows = tuple(
        (
            Cell(text=score.task),
            Cell(text=score.metric),
            *(_cell(*pair) for pair in zip(score.values, score.errors, strict=True)),
        )
        for score in scores
    )
    return Section("Tasks", (Table(columns=columns, rows=rows, caption="± one standard error", is_grouped=True),))


def _installed() -> Any:
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as e:
        raise DataError(f"{NO_HARNESS} ({first_line(e)})") from e
    return lm_eval


def _tokenizer_of(model: Any) -> Any:
    """A tokenizer of the harness's own, which changes it."""
    if not writes_text(model):
        raise DataError(f"tasks ask causal language models, and a {type(model).__name__} is none")
    return needed_tokenizer(str(getattr(model, "name_or_path", "") or ""), "to put tasks with")


def _results(harness: Any, model: Any, tokenizer: Any, tasks: Tasks, manager: Any) -> Mapping[str, Mapping[str, Any]]:
    with inference_mode_of(model):
        asked = harness.models.huggingface.HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH
        )
        how = {"limit": tasks.limit, "bootstrap_iters": RESAMPLES, "log_samples": False, "task_manager": manager}
        try:
            found = harness.simple_evaluate(asked, tasks=[*tasks.names], **how)
        except (OSError, ValueError, KeyError) as e:  # of data sets that aren't there, and of the tasks' files
            raise DataError(f"the tasks {', '.join(tasks.names)} can't be asked: {first_line(e)}") from e
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    return results


@contextmanager
def _unnoticed() -> Iterator[None]:
    """The harness logs and prints what it does, draws bars, which are for terminals, and seeds whatever draws."""
    logger, numbers, others = logging.getLogger("lm_eval"), random.getstate(), np.random.get_state()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with Path(os.devnull).open("w") as nowhere:
            bars = sys.stderr if sys.stderr.isatty() else nowhere
            with redirect_stdout(bars), redirect_stderr(bars):
                yield
    finally:
        logger.setLevel(level)
        random.setstate(numbers)
        np.random.set_state(others)


def _spoken(key: str) -> str:
    """`acc,none` is "acc"; `exact_match,strict-match` says how it was matched."""
    metric, _, how = key.partition(",")
    return metric if how == PLAIN else f"{metric} ({how})"


def _error_key(key: str) -> str:
    metric, _, how = key.partition(",")
    return f"{metric}_stderr,{how}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _cell(value: float, error: float | None) -> Cell:
    return Cell(text=f"{value:.4g}", detail="" if error is None else f"± {error:.2g}")
