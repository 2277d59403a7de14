"""What a job is going to do and about how much that is, told from its recipe and the files it names, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from dnge_compress.checkpoint.model_files import embedding_rows, read_config, weight_files
from dnge_compress.core.folders import whole_folder
from dnge_compress.core.wording import count, several
from dnge_compress.data.about_tokens import about_tokens, tokenizer_in
from dnge_compress.data.kinds import LEARNED
from dnge_compress.data.row_files import is_on_hub
from dnge_compress.data.sources import settled
from dnge_compress.jobs.rates import trial_steps
from dnge_compress.jobs.rounds import names, share
from dnge_compress.recipes.data_schema import Dataset
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.lora_schema import LoraBudget, matches

PASSES = 3  # forward, and twice as much backward
TRIALS = 3  # of a learning rate, at least: one and both beside it
FLOAT_BYTES = 4  # of a trained parameter: of the best so far, of an adapter
OPTIMIZED = 12  # bytes on disk per trained parameter in a checkpoint: float32 weights, and two moments of Adam's


@dataclass(frozen=True)
class Weights:
    """What a model's files tell: how many parameters and bytes there are, and the shapes of matrices, tables of tokens
    left out."""

    params: int = 0
    bytes: int = 0
    matrices: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A stage by its name, and the line that is shown for it."""

    name: str
    about: str


def stage_names(job: Job) -> list[str]:
    """The stages of a job, in order; no file is read for them."""
    found = [
        *(["vocabulary"] if job.vocabulary is not None else []),
        *(["data"] if job.train is not None else []),
        *names(job),
        *(["prune"] if job.prune is not None else []),
        *(["place"] if job.lora is not None else []),
    ]
    if job.train is not None:
        found += ["rate"] if job.train.learning_rate == "auto" else []
        found += [f"train {variant}".strip() for variant in ("", *job.compare)]
    leaves_model = job.lora is None or job.save.merge_adapter or job.save.flat_adapter
    return [*found, "measure", *(["save"] if job.train is not None and leaves_model else [])]


def planned(job: Job) -> list[Planned]:
    """What a job will do, in order, and about what: the sources of its rows are looked at for it."""
    return [Planned(name, _about(job, name)) for name in stage_names(job)]


def _about(job: Job, stage: str) -> str:
    if stage == "vocabulary":
        return _tokens_about(job)
    if stage == "data":
        return _data_about(job)
    if stage.startswith("round"):
        return f"prunes {share(job).ratio:.1%} of what is left, and recovers"
    if stage == "prune":
        return _prune_about(job)
    if stage == "place" and job.lora is not None:
        return f"{_budget_about(job.lora.budget)}, placer {job.lora.placer}"
    if stage == "rate":
        return f"a learning rate{' for each placement' if job.compare else ''}, by a few short trainings"
    if stage.startswith("train"):
        return _train_about(job, stage.removeprefix("train").strip())
    if stage == "measure":
        return "size" if job.train is None else "held-out loss, size and speed"
    return "the best model as an ordinary checkpoint"


def _prune_about(job: Job) -> str:
    prune = job.prune
    assert prune is not None
    where = f" of {prune.within}" if prune.within else ""
    if job.rounds > 1:
        much = f"{share(job).ratio:.1%} of what is left of the {prune.of}"
    elif prune.target:
        much = f"until {prune.target} is {getattr(prune, prune.target):,}"
    else:
        much = f"{prune.ratio:.0%} of the {prune.of}"
    inputs = ", calibrated on the rows" if job.calibrate_on == "rows" and job.has_real_rows else ""
    return f"{much}{where}, {prune.allocation}, scorer {job.scorer}{inputs}"


def estimate(job: Job) -> dict[str, str]:
    """The model's size, and about how many tokens, steps, multiply-accumulates and bytes the job takes; what can't be
    known before a model or rows are fetched is left out."""
    base = whole_folder(Path(job.model_name_or_path))
    weights = _weights_in(base) if base.is_dir() else Weights()
    params = weights.params
    found = {"model": f"{count(params)} parameters, {count(weights.bytes, 'B')}"} if params else {}
    tokens = _tokens(job)
    if job.train is not None and tokens is not None:
        row = job.train.max_length * job.train.per_device_train_batch_size * job.launch.num_processes
        each = row * job.train.gradient_accumulation_steps
        steps = math.ceil(tokens * job.train.num_train_epochs / each)
        steps = job.train.max_steps if job.train.max_steps > 0 else max(1, steps)
        found["rows"] = f"about {count(tokens)} tokens"
        found["training"] = f"about {steps:,} steps of {each:,} tokens"
        if params:
            found["work"] = f"{_work(job, params, steps, each)} of training"
    if params:
        least, most = _left(job, "parameters")
        word = "about" if least == most and job.rounds == 1 else "at most"
        found["disk"] = f"{word} {count(_disk(job, weights, most), 'B')}"
    return found


def _left(job: Job, what: Literal["parameters", "macs"]) -> tuple[float, float]:
    """The least and the most that pruning leaves of the whole."""
    return (1.0, 1.0) if job.prune is None else job.prune.left(what)


def _work(job: Job, params: int, steps: int, each: int) -> str:
    """Multiply-accumulates of trainings, of the trials that find their rates, and of the teacher."""
    assert job.train is not None
    least, most = _left(job, "macs")
    if job.prune is not None and job.prune.of == "parameters":  # of which every token takes as many
        least, most = _left(job, "parameters")
    trials = TRIALS * trial_steps(steps) if job.train.learning_rate == "auto" else 0
    taught = params if job.distill is not None else 0
    work = (PASSES * params * most + taught) * (steps + trials) * each * (1 + len(job.compare))
    work += (PASSES * params + taught) * (steps + trials) * each * (job.rounds - 1)  # of what is less than the whole
    return f"{'about' if least == most and job.rounds == 1 else 'at most'} {count(work)} multiply-accumulates"


def _weights_in(folder: Path) -> Weights:
    """Those of a folder's safetensors; nothing of other formats."""
    shapes, files = dict[str, list[int]](), weight_files(folder)
    for file in files:
        with safe_open(file, "np") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    tokens = embedding_rows(read_config(folder))
    matrices = {n: (shape[0], shape[1]) for n, shape in shapes.items() if len(shape) == 2 and tokens not in shape}
    return Weights(sum(map(math.prod, shapes.values())), sum(file.stat().st_size for file in files), matrices)


def _tokens(job: Job) -> int | None:
    """Of the rows to train on, about; None where some are on the hub."""
    total, tokenizer = 0, tokenizer_in(job.model_name_or_path) if job.has_real_rows else None
    for source in job.datasets:
        found = source.tokens if source.type == "sampled" else about_tokens(source, tokenizer)
        if found is None:
            return None
        total += found
    return round(total * (1 if job.eval_datasets else 1 - job.eval_fraction))


def _disk(job: Job, weights: Weights, left: float) -> float:
    """Models, checkpoints of what is trained, the best of them, and adapters; of layers that were pruned, adapters are
    counted as of whole ones."""
    is_saved = job.train is not None and (job.lora is None or job.save.merge_adapter)
    models = weights.bytes * left * ((job.prune is not None) + is_saved)
    models += weights.bytes * (2 * (job.rounds - 1) + (job.vocabulary is not None))  # an early round leaves two
    if job.train is None:
        return models
    each = OPTIMIZED * job.train.save_total_limit + FLOAT_BYTES
    if job.lora is None:
        return models + weights.params * each * (left + job.rounds - 1)
    return models + _adapted(job, weights) * (each + FLOAT_BYTES) * (len(job.compare) + job.rounds)


def _adapted(job: Job, weights: Weights) -> float:
    """About how many parameters the adapters of one training have."""
    assert job.lora is not None
    budget, targets, without = job.lora.budget, job.lora.target_modules, job.lora.exclude_modules
    if budget.trainable_params is not None:
        return budget.trainable_params
    if budget.trainable_fraction is not None:
        return budget.trainable_fraction * weights.params
    return sum(
        min(budget.match_uniform_r or 0, *shape) * sum(shape)
        for path, shape in weights.matrices.items()
        if (targets == "all-linear" or any(matches(path, name) for name in targets))
        and not any(matches(path, name) for name in without)
    )


def _data_about(job: Job) -> str:
    held = ", ".join(map(_source_about, job.eval_datasets)) or f"{job.eval_fraction:.0%} of the rows"
    return f"{', '.join(map(_source_about, job.datasets))}; held out: {held}"


def _tokens_about(job: Job) -> str:
    assert job.vocabulary is not None
    users = [*(["the rows"] if job.has_real_rows else []), *job.vocabulary.scripts]
    return f"only tokens stay that are used by {', '.join(users)}"


def _source_about(source: Dataset) -> str:
    """Where rows are from, and how they are read, as far as that can be told here."""
    if source.type == "sampled":
        return f"{source.tokens:,} tokens sampled from the model"
    if is_on_hub(source, Path.cwd()):
        return source.path
    known, words = settled(source, Path.cwd())
    return f"{source.path}, read as {words}: {LEARNED[known.type]}"


def _budget_about(budget: LoraBudget) -> str:
    name, value = next((k, v) for k, v in budget.model_dump().items() if v is not None)
    return f"{name} {value:,}"


def _train_about(job: Job, variant: str) -> str:
    settings = job.train
    assert settings is not None
    epochs = settings.num_train_epochs
    length = f"{epochs:g} epoch{'s'[: epochs != 1]}" if settings.max_steps <= 0 else several(settings.max_steps, "step")
    what = "all parameters" if job.lora is None else f"LoRA, {variant} placement" if variant else "LoRA"
    processes = job.launch.num_processes
    many = f" in {processes} processes" if processes > 1 else ""
    taught = ", taught by the original" if job.distill else ""
    rate = "" if settings.learning_rate == "auto" else f" at {settings.learning_rate:g}"
    return f"{what}{taught}: {length}{rate}{many}"
