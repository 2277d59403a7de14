"""A job from its recipe, with everything refused that can be without torch; and whether it is done already."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from dnge_compress.checkpoint.model_files import architecture_of, locate, read_config
from dnge_compress.core.errors import CheckpointError, LaunchError, RecipeError, UnsupportedModelError
from dnge_compress.data.sources import check_sources
from dnge_compress.jobs.folder import REPORT, JobFolder, refuse
from dnge_compress.jobs.outline import stage_names
from dnge_compress.jobs.rounds import names
from dnge_compress.recipes.job_schema import CAUSAL, Job
from dnge_compress.recipes.library import anchor, kind_of, load, resolve, validate
from dnge_compress.recipes.methods import PLACERS, SCORERS


def job_of(recipe: str | Path | Job, overrides: Mapping[str, Any] | None = None) -> Job:
    """A job by name, path or value; a prune or LoRA recipe becomes a job of that one stage.

    Everything that can be refused without opening the model is refused here. Raises a DngeError.
    """
    found = _as_job(recipe, dict(overrides or {}))
    for key in ("model_name_or_path", "output_dir"):
        if not getattr(found, key):
            raise RecipeError(f"'{found.name}' names no {key}; write it in the recipe, or {key}=… behind it")
    if found.train is not None and not found.datasets:
        raise RecipeError(
            f"'{found.name}' has nothing to train on; write datasets: [{{path: …}}], or [{{type: sampled}}] for text "
            "from the model itself"
        )
    found = _absolute(found)
    refuse(JobFolder(Path(found.output_dir)), found)
    if found.prune is not None:
        SCORERS.refuse_unusable(found.scorer, bool(found.datasets))
        if found.calibrate_on == "synthetic" and SCORERS.needs_data(found.scorer):
            raise RecipeError(
                f"scorer '{found.scorer}' scores on the rows, which calibrate_on: synthetic rules out; write "
                "calibrate_on: rows, or another scorer"
            )
    for placer in (found.lora.placer, *found.compare) if found.lora else ():
        PLACERS.refuse_unusable(placer, bool(found.datasets))
    _refuse_model(found)
    if found.launch.strategy == "fsdp2" and (found.train is None or _uses_cpu(found)):
        raise LaunchError("launch.strategy 'fsdp2' shards over accelerators, and none is used here; set ddp")
    check_sources([*found.datasets, *found.eval_datasets], Path.cwd())
    return found


def is_finished(folder: JobFolder, job: Job) -> bool:
    """Whether every stage is done and the report is written, and every result is still there."""
    if not (folder.root / REPORT).is_file():
        return False
    done = folder.read()["stages"]
    return all(stage in done and _has_result(folder, job, stage) for stage in stage_names(job))


def due(folder: JobFolder, job: Job) -> set[str]:
    """The stages that are still to run: those not done, and those of which something is gone that is needed."""
    done = folder.read()["stages"]
    stages = stage_names(job)
    found = {name for name in stages if name not in done or not _stands(folder, job, name)}
    for after, before in pairwise(["prune", *reversed(names(job))]):
        found |= {before} if after in found and not folder.round(int(before.split()[1])).model.is_dir() else set()
    if "vocabulary" in stages and found and not folder.fewer_tokens.is_dir():
        found.add("vocabulary")
    has_rows = folder.train_rows.is_file() and folder.held_out_rows.is_file()
    if "data" in stages and found - {"save"} and not has_rows:
        found.add("data")
    return found


def _has_result(folder: JobFolder, job: Job, stage: str) -> bool:
    """Whether what a stage leaves for the user is there; somebody may have moved it away."""
    if stage == "prune":
        return folder.pruned.is_dir()
    if stage == "place":
        return all(folder.lora_plan(variant).is_file() for variant in ("", *job.compare))
    if stage.startswith("train") and job.lora is not None:
        return folder.adapter(_variant(stage)).is_dir()
    if stage == "save":
        has_flat = job.lora is None or not job.save.flat_adapter or folder.flat_adapter.is_dir()
        return has_flat and (folder.model.is_dir() or (job.lora is not None and not job.save.merge_adapter))
    return True


def _stands(folder: JobFolder, job: Job, stage: str) -> bool:
    """Whether what a stage leaves for the user and for later stages is there."""
    if stage.startswith("train"):
        variant = _variant(stage)
        is_trained = job.lora is not None or folder.best(variant).is_dir()
        return is_trained and folder.curve(variant).is_file() and _has_result(folder, job, stage)
    return _has_result(folder, job, stage)


def _variant(stage: str) -> str:
    return stage.removeprefix("train").strip()


def refuse_other_tasks(architecture: str, path: str | Path) -> None:
    """Raise UnsupportedModelError for anything but a causal language model."""
    if not architecture.endswith(CAUSAL):
        raise UnsupportedModelError(
            f"a job trains causal language models; '{path}' is a {architecture}: leave out `train`, "
            "or train it with your own loop on what `dnge compress` and `dnge place` give"
        )


def _refuse_model(job: Job) -> None:
    """What is wrong with the name of a model, or with one on this machine."""
    path = Path(job.model_name_or_path)
    if not path.is_dir():
        if path.is_absolute() or job.model_name_or_path.startswith(".") or len(path.parts) > 2:
            raise CheckpointError(f"model folder '{path}' doesn't exist; correct model_name_or_path")
        return
    refuse_config(job, locate(path, allow_pickle=False))


def refuse_config(job: Job, path: Path) -> None:
    """Raise a DngeError where the config of a folder says that the model can't be trained here, or not so long."""
    config = read_config(path)
    if job.train is None:
        return
    refuse_other_tasks(architecture_of(path, config) or "model without a named class", job.model_name_or_path)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(positions, int) and job.train.max_length > positions:
        raise RecipeError(
            f"train.max_length is {job.train.max_length}, but '{job.model_name_or_path}' has {positions} positions; "
            "set at most as many"
        )


def _as_job(recipe: str | Path | Job, overrides: dict[str, Any]) -> Job:
    places = {k: overrides.pop(k) for k in ("model_name_or_path", "output_dir") if k in overrides}
    if isinstance(recipe, Job) or kind_of(recipe) == "job":
        return resolve(recipe, overrides | places, Job)
    values: dict[str, Any] = load(recipe, overrides).model_dump(exclude={"recipe"})
    return validate(values | places, "override", kind=Job)


def _absolute(job: Job) -> Job:
    """The job with absolute paths, so that it is the same one from wherever it is started again."""
    raw = job.model_dump()
    anchor(raw, Path.cwd())
    return validate(raw, "override", kind=Job)


def _uses_cpu(job: Job) -> bool:
    from dnge_compress.jobs.models import uses_cpu  # here, since torch takes seconds to import

    return uses_cpu(job)
