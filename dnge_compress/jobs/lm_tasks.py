"""Tasks of lm-evaluation-harness (EleutherAI), which answers them by its own public API; an extra."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnge_compress.core.document import Cell, Column, Section, Table
from dnge_compress.core.errors import DataError, first_line, nearest
from dnge_compress.core.wording import NO_HARNESS
from dnge_compress.signals.inference import device_of, writes_text
from dnge_compress.signals.tokenizer import tokenizer_of

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


def task_scores(
    models: Sequence[Any], tasks: Sequence[str], *, folder: Path | None = None, limit: int | None = None
) -> tuple[TaskScore, ...]:
    """Every metric of the named tasks for causal language models. Tasks in YAML files of `folder` are known as well;
    `limit` is how many questions of each task are asked, all by default.

    Raises DataError where the harness isn't installed, models write no text or have no tokenizer, a task is unknown,
    or its questions can't be read.
    """
    harness = _installed()
    found = [_results(harness, model, tasks, folder, limit) for model in models]
    first = found[0]
    return tuple(
        TaskScore(
            task=task,
            metric=_spoken(key),
            values=tuple(float(own[task][key]) for own in found),
            errors=tuple(_number(own[task].get(_error_key(key))) for own in found),
        )
        for task, scores in first.items()
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
        raise DataError(NO_HARNESS) from e
    return lm_eval


def _results(
    harness: Any, model: Any, tasks: Sequence[str], folder: Path | None, limit: int | None
) -> Mapping[str, Mapping[str, Any]]:
    tokenizer = tokenizer_of(str(getattr(model, "name_or_path", "") or ""))
    if not writes_text(model) or tokenizer is None:
        raise DataError(f"tasks ask causal language models with a tokenizer, and a {type(model).__name__} is none here")
    with _quiet():
        manager = harness.tasks.TaskManager(include_path=None if folder is None else str(folder))
        for task in tasks:
            if task not in manager.all_tasks:
                raise DataError(f"unknown task '{task}'; {nearest(task, manager.all_tasks)}")
        asked = harness.models.huggingface.HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH, device=str(device_of(model))
        )
        try:
            found = harness.simple_evaluate(
                asked, tasks=[*tasks], limit=limit, task_manager=manager, bootstrap_iters=RESAMPLES, log_samples=False
            )
        except Exception as e:  # of data sets that aren't there, and of tasks themselves
            raise DataError(f"the tasks {', '.join(tasks)} can't be asked: {first_line(e)}") from e
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    return results


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness logs what it reads, and its loggers stand below one name."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _spoken(key: str) -> str:
    """`acc,none` is "acc", `exact_match,strict-match` says how it was matched."""
    metric, _, how = key.partition(",")
    return metric if how == PLAIN else f"{metric} ({how})"


def _error_key(key: str) -> str:
    metric, _, how = key.partition(",")
    return f"{metric}_stderr,{how}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _cell(value: float, error: float | None) -> Cell:
    return Cell(text=f"{value:.4g}", detail="" if error is None else f"± {error:.2g}")
