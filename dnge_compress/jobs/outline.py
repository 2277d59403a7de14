"""What a job is going to do and about how much that is, told from its recipe and the files it names, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from dnge_compress.checkpoint.model_files import weight_files
from dnge_compress.core.folders import whole_folder
from dnge_compress.core.wording import count
from dnge_compress.data.formats import RowFile
from dnge_compress.data.kinds import LEARNED
from dnge_compress.data.row_files import is_on_hub, wanted
from dnge_compress.data.sources import settled, spans
from dnge_compress.jobs.rates import trial_steps
from dnge_compress.recipes.data_schema import Dataset
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.lora_schema import LoraBudget

BYTES_PER_TOKEN = 4  # of English, about
PASSES = 3  # forward, and twice as much backward
TRIALS = 3  # of a learning rate, at least: one and both beside it
TRAINED = 4  # bytes per parameter of the best so far
OPTIMIZED = 12  # bytes on disk per trained parameter in a checkpoint: float32 weights, and two moments of Adam's


@dataclass(frozen=True)
class Planned:
    """A stage by its name, and the line that is shown for it."""

    name: str
    about: str


def planned(job: Job) -> list[Planned]:
    """What a job will do, in order."""
    found = []
    if job.vocabulary is not None:
        found.append(Planned("vocabulary", _tokens_about(job)))
    if job.train is not None:
        found.append(Planned("data", _data_about(job)))
    for number in range(1, job.rounds):
        found.append(Planned(f"round {number}", f"prunes {_share(job):.1%} of what is left, and recovers"))
    if job.prune is not None:
        where = f" of {job.prune.within}" if job.prune.within else ""
        much = (
            f"{_share(job):.1%} of what is left of the {job.prune.of}"
            if job.rounds > 1
            else f"{job.prune.ratio:.0%} of the {job.prune.of}"
            if not job.prune.target
            else f"until {job.prune.target} is {getattr(job.prune, job.prune.target):,}"
        )
        inputs = ", calibrated on the rows" if job.calibrate_on == "rows" and job.has_real_rows else ""
        cut = f"{much}{where}, {job.prune.allocation}, scorer {job.scorer}{inputs}"
        found.append(Planned("prune", cut))
    if job.lora is not None:
        found.append(Planned("place", f"{_budget_about(job.lora.budget)}, placer {job.lora.placer}"))
    if job.train is not None:
        if job.train.learning_rate == "auto":
            each = " for each placement" if job.compare else ""
            found.append(Planned("rate", f"a learning rate{each}, by a few short trainings"))
        for variant in ("", *job.compare):
            found.append(Planned(f"train {variant}".strip(), _train_about(job, variant)))
    found.append(Planned("measure", "size" if job.train is None else "held-out loss, size and speed"))
    if job.train is not None and (job.lora is None or job.save.merge_adapter or job.save.flat_adapter):
        found.append(Planned("save", "the best model as an ordinary checkpoint"))
    return found


def _share(job: Job) -> float:
    """What each round takes of what is left."""
    assert job.prune is not None
    return 1 - (1 - job.prune.ratio) ** (1 / job.rounds)


def estimate(job: Job) -> dict[str, str]:
    """The model's size, and about how many tokens, steps, multiply-accumulates and bytes the job takes; what can't be
    known before a model or rows are fetched is left out."""
    base = whole_folder(Path(job.model_name_or_path))
    params, whole = _size_of(base) if base.is_dir() else (0, 0)
    found = {"model": f"{count(params)} parameters, {count(whole, 'B')}"} if params else {}
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
        word = "about" if least == most else "at most"
        found["disk"] = f"{word} {count(_disk(job, params, whole, most), 'B')}"
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


def _size_of(folder: Path) -> tuple[int, int]:
    """Parameters and bytes of the weights in a folder, from their headers; (0, 0) for others than safetensors."""
    params, files = 0, weight_files(folder)
    for file in files:
        with safe_open(file, "np") as tensors:
            params += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return params, sum(file.stat().st_size for file in files)


def _tokens(job: Job) -> int | None:
    """Of the rows to train on, about; None where some are on the hub."""
    total = 0
    for source in job.datasets:
        found = source.tokens if source.type == "sampled" else _tokens_in(source)
        if found is None:
            return None
        total += found
    return round(total * (1 if job.eval_datasets else 1 - job.eval_fraction))


def _tokens_in(source: Dataset) -> int | None:
    if is_on_hub(source, Path.cwd()):
        return None
    source, _ = settled(source, Path.cwd())
    splits = {split: [RowFile(f, source) for f in files] for split, files in wanted(source, Path.cwd()).items()}
    sizes = {split: sum(file.path.stat().st_size for file in files) for split, files in splits.items()}
    total = sum(sizes.values())
    if "[" in source.split or source.max_rows is not None:
        rows = {split: sum(file.about_rows() for file in files) for split, files in splits.items()}
        taken = rows
        if "[" in source.split:
            taken = dict.fromkeys(rows, 0)
            for span in spans(source, rows):
                taken[span.splitname] += span.to - span.from_
        total = sum(sizes[split] * taken[split] // max(1, rows[split]) for split in rows)
        if source.max_rows is not None:
            total = total * min(source.max_rows, sum(taken.values())) // max(1, sum(taken.values()))
    return total // BYTES_PER_TOKEN


def _disk(job: Job, params: int, whole: int, left: float) -> float:
    """Models and, where all parameters are trained, checkpoints and the best of them; adapters are small."""
    is_saved = job.train is not None and (job.lora is None or job.save.merge_adapter)
    models = whole * left * ((job.prune is not None) + is_saved)
    if job.train is None or job.lora is not None:
        return models
    return models + params * left * (OPTIMIZED * job.train.save_total_limit + TRAINED)


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
    length = f"{settings.max_steps:,} steps" if settings.max_steps > 0 else f"{settings.num_train_epochs:g} epochs"
    what = "all parameters" if job.lora is None else f"LoRA, {variant} placement" if variant else "LoRA"
    processes = job.launch.num_processes
    many = f" in {processes} processes" if processes > 1 else ""
    taught = ", taught by the original" if job.distill else ""
    rate = "" if settings.learning_rate == "auto" else f" at {settings.learning_rate:g}"
    return f"{what}{taught}: {length}{rate}{many}"
