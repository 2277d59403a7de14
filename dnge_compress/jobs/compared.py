"""Two models side by side on the same held-out inputs: quality, agreement, size, speed, and what they write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dnge_compress.checkpoint import opened
from dnge_compress.core.document import Document
from dnge_compress.core.errors import DataError
from dnge_compress.core.progress import Progress, reporter
from dnge_compress.core.strict_json import json_values
from dnge_compress.core.terminal import Printable
from dnge_compress.core.verbs import verb
from dnge_compress.core.wording import percent
from dnge_compress.data.given import JUDGED, given_data
from dnge_compress.jobs.asked_tasks import Tasks
from dnge_compress.jobs.lm_tasks import TaskScore, task_scores
from dnge_compress.jobs.lm_tasks import section as task_section
from dnge_compress.jobs.measuring import milestone_of
from dnge_compress.jobs.report import content
from dnge_compress.jobs.report.measures import Milestone, Sample
from dnge_compress.jobs.samples import BEGINNING, ROWS, continuation_of, continued
from dnge_compress.report.page import page
from dnge_compress.report.report import name_of
from dnge_compress.report.speeds import seconds_of, shape_of
from dnge_compress.signals.inference import (
    Inputs,
    call,
    device_of,
    first_examples,
    inference_mode_of,
    to_device,
    writes_text,
)
from dnge_compress.signals.positions import positions_of
from dnge_compress.signals.tokenizer import tokenizer_of
from dnge_compress.tasks.quality import ACCURACY, PERPLEXITY, apart, measure_of

Model: TypeAlias = nn.Module | str | Path
TIMED_ROWS = 4  # examples whose forward pass is timed


@dataclass(frozen=True, kw_only=True)
class Compared(Printable):
    """What `compare` found; changes are against the first of the two `milestones`.

    `agreement` is the share of answers (tokens, classes) that are the same, or the mean cosine of the outputs where
    these are no scores (`is_cosine`); `damage` the divergence of the second model's answers from the first's in nats
    per label; `accuracies` are those of a classifier whose inputs held `labels`. `speedup` is the first model's time
    for a forward pass over the second's; two measurements may differ by the share `speed_noise`.
    """

    milestones: tuple[Milestone, Milestone]
    agreement: float
    is_cosine: bool
    damage: float
    speedup: float
    speed_noise: float
    accuracies: tuple[float, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = field(default=())
    tasks: tuple[TaskScore, ...] = ()

    def document(self) -> Document:
        """The comparison in sections."""
        first, second = (m.name for m in self.milestones)
        agreed = f"{self.agreement:.3f}" if self.is_cosine else percent(self.agreement)
        answers = {"cosine" if self.is_cosine else "same answers": agreed}
        answers["divergence"] = f"{self.damage:.3g} nats"
        for name, accuracy in zip((first, second), self.accuracies, strict=False):
            answers[f"accuracy of {name}"] = percent(accuracy)
        is_same = abs(self.speedup - 1) <= self.speed_noise
        noise = f"± {percent(self.speed_noise)}"
        answers["speed"] = f"the same within {noise}" if is_same else f"{self.speedup:.2f}× ({noise})"
        sections = (
            content.comparison(self.milestones),
            content.facts("Answers", answers),
            task_section(self.tasks, (first, second)),
            content.samples(self.samples),
            content.notes(self.notes),
        )
        return Document(
            title=f"{first} and {second}",
            sections=tuple(section for section in sections if section is not None),
            eyebrow="Comparison",
        )

    def to_html(self) -> str:
        """One page; it holds everything it needs, runs nothing and asks nobody."""
        return page(self.document())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return json_values(self)


@verb
def compare(
    first: Model,
    second: Model,
    *,
    data: Iterable[Any],
    names: tuple[str, str] | None = None,
    tasks: Tasks | None = None,
    progress: Progress | bool = False,
) -> Compared:
    """Two models of the same inputs side by side: the perplexity of causal language models, or the accuracy where
    inputs hold `labels`; how often they agree and how far apart their answers are; sizes; speeds, measured in turn; and
    how both go on after the same beginnings.

    `data` is an iterable of inputs that neither was made with, as in `compress`; `names` are what to call the models.
    `tasks` of lm-evaluation-harness (extra `tasks`) are put to both, as in `tasks=Tasks(("arc_easy",), limit=200)`.
    Raises DataError for models that don't answer alike and tasks that can't be asked, and other DngeErrors.

        print(compare("base", "small", data=batches))
    """
    tell = reporter(progress)
    tell("open", 0, 2)
    models = (opened(first), opened(second))
    tell("open", 2, 2)
    _refuse_other_tokens(models)
    found = given_data(data, models[0], JUDGED)
    _refuse_strangers(models, found.batches)
    scores: tuple[TaskScore, ...] = ()
    if tasks is not None:
        tell("tasks", 0, 1)
        scores = task_scores(models, tasks)
        tell("tasks", 1, 1)
    tell("measure", 0, 3)
    answers = apart(*models, found.batches)
    tell("measure", 1, 3)
    seconds, noise = _timed(models, found.batches)
    tell("measure", 2, 3)
    called = names or _names(models)
    losses = [
        math.log(quality) if quality is not None and measure_of(model, found.batches) == PERPLEXITY else None
        for model, quality in zip(models, answers.qualities, strict=True)
    ]
    milestones = [*map(milestone_of, called, models, losses)]
    texts = _samples(models, called, found.batches)
    tell("measure", 3, 3)
    is_classifier = measure_of(models[0], found.batches) == ACCURACY
    return Compared(
        milestones=(milestones[0], milestones[1]),
        agreement=answers.agreement,
        is_cosine=answers.is_cosine,
        damage=answers.damage,
        speedup=seconds[0] / seconds[1],
        speed_noise=noise,
        accuracies=tuple(q for q in answers.qualities if q is not None) if is_classifier else (),
        samples=texts,
        notes=found.notes,
        tasks=scores,
    )


def _refuse_other_tokens(models: Sequence[nn.Module]) -> None:
    """Raise DataError for models with other numbers of tokens."""
    tokens = [_tokens_of(model) for model in models]
    if tokens[0] != tokens[1]:
        raise DataError(
            f"the models read other tokens, {tokens[0]:,} and {tokens[1]:,} of them; compare models of one tokenizer"
        )


def _refuse_strangers(models: Sequence[nn.Module], batches: Sequence[Inputs]) -> None:
    """Raise DataError for models whose answers can't be compared."""
    few = first_examples(batches, 1)[0]
    shapes = []
    for model in models:
        with torch.no_grad(), inference_mode_of(model):
            shapes.append(tuple(call(model, to_device(few, device_of(model))).shape))
    if shapes[0] != shapes[1]:
        raise DataError(
            f"the models answer with {list(shapes[0])} and {list(shapes[1])} numbers on the same input; compare models "
            "of one task and one tokenizer"
        )


def _tokens_of(model: Any) -> int:
    """How many tokens a model has a row for; 0 where it reads none."""
    config = getattr(model, "config", None)
    return int(getattr(config.get_text_config(), "vocab_size", 0) or 0) if config is not None else 0


def _first_text(batch: Mapping[str, Any]) -> Tensor:
    """The tokens of a batch's first row, without its padding."""
    row, mask = batch["input_ids"][0], batch.get("attention_mask")
    return row[mask[0].bool()] if mask is not None and mask.dim() == 2 else row


def _timed(models: Sequence[nn.Module], batches: Sequence[Inputs]) -> tuple[list[float], float]:
    """Seconds of both models and the noise; models of one shape are equally fast."""
    if shape_of(models[0]) == shape_of(models[1]):
        return [1.0, 1.0], 0.0
    return seconds_of(models, first_examples(batches, TIMED_ROWS)[0])


def _names(models: Sequence[nn.Module]) -> tuple[str, str]:
    first, second = map(name_of, models)
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _samples(models: Sequence[Any], names: Sequence[str], batches: Sequence[Inputs]) -> tuple[Sample, ...]:
    """How both go on after the beginnings of a few texts, if they write any and there is a tokenizer."""
    tokenizer = tokenizer_of(str(getattr(models[0], "name_or_path", "") or "")) if writes_text(models[0]) else None
    if tokenizer is None:
        return ()
    rows = [_first_text(batch) for batch in batches if isinstance(batch, Mapping) and "input_ids" in batch]
    found, positions = [], positions_of(models[0])
    tokens = continuation_of(positions)
    room = BEGINNING if positions is None else positions - tokens
    for row in rows[:: max(1, len(rows) // ROWS)][:ROWS]:
        ids = row[: min(BEGINNING, room, max(1, len(row) // 2))].tolist()
        texts = {name: continued(model, ids, tokenizer, tokens) for name, model in zip(names, models, strict=True)}
        found.append(Sample(tokenizer.decode(ids), texts))
    return tuple(found)
