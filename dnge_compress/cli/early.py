"""What a command line tells before anything heavy is loaded: wrong recipes, models, data, and places for results."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from dnge_compress.checkpoint.model_files import (
    architecture_of,
    least_bytes,
    read_config,
    refuse_missing,
    refuse_silent,
)
from dnge_compress.checkpoint.targets import refuse_closed, refuse_target
from dnge_compress.core.errors import CheckpointError, DataError, PlanError
from dnge_compress.core.folders import refuse_file, whole_folder
from dnge_compress.core.wording import NO_HARNESS
from dnge_compress.data.sources import source_of
from dnge_compress.jobs.asked_tasks import Tasks
from dnge_compress.plans.basis import refuse_other_content, refuse_scores
from dnge_compress.recipes.library import assignments, resolve
from dnge_compress.recipes.lora_schema import LoraRecipe
from dnge_compress.recipes.methods import PLACERS, SCORERS
from dnge_compress.recipes.schema import Prune, Recipe


def refuse_early(options: Namespace) -> None:
    """Raise a DngeError where a command on a model, or on what dnge made, can't go well."""
    if options.function == "report":
        _refuse_unless_folder(whole_folder(Path(options.folder)))
        return
    if options.function == "apply" and not Path(options.plan).expanduser().exists():  # not opened: it may be a pipe
        raise PlanError(f"plan '{options.plan}' is missing; make or fetch it again")
    if options.function == "generate":
        refuse_missing(options.model)
        _refuse_silent(whole_folder(Path(options.model)))
        return
    recipe, has_data = None, bool(options.data or getattr(options, "scores", None))
    for ratio in getattr(options, "ratios", ()):
        resolve(prune_recipe(options), {"ratio": ratio})
    if options.function == "place":
        PLACERS.refuse_unusable(lora_recipe(options).lora.placer, has_data)
    elif options.function == "compare":
        if not options.data:
            raise DataError("compare needs text that neither model was made with; give it (--data FILE)")
        refuse_missing(options.other)
        for folder in (whole_folder(Path(options.model)), whole_folder(Path(options.other))):
            if folder.is_dir():
                read_config(folder)
        if asked_tasks(options) is not None and find_spec("lm_eval") is None:
            raise DataError(NO_HARNESS)
    elif options.function not in ("apply", "vocabulary"):  # a plan has its own
        recipe = prune_recipe(options)
        SCORERS.refuse_unusable(recipe.scorer, has_data)
    refuse_missing(options.model)
    if getattr(options, "scores", None) and recipe is not None:
        refuse_scores(Path(options.scores), recipe)
    if options.data:
        source_of(options.data)
    if getattr(options, "held_out", None):
        source_of(options.held_out)
    output = getattr(options, "output", None)
    if output and getattr(options, "work", None):
        _refuse_work(Path(options.work), Path(output))
    if output and options.function in ("compress", "apply", "vocabulary"):
        base = whole_folder(Path(options.model))
        refuse_target(Path(output), options.force, _least_bytes(options, recipe), base if base.is_dir() else None)
    elif output:
        if options.function == "score":
            refuse_other_content(Path(output))
            refuse_closed(Path(output))
            return
        if options.function in ("curve", "compare") and Path(output).exists() and not options.force:
            raise CheckpointError(f"'{output}' exists; name another file, or pass --force to replace it")
        _refuse_place(Path(output))


def _refuse_silent(folder: Path) -> None:
    """What the config of a folder says is no causal language model writes nothing."""
    if folder.is_dir():
        refuse_silent(architecture_of(folder, read_config(folder)) or "model without a named class", folder)


def _refuse_unless_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is {'a file' if folder.exists() else 'not there'}; name a folder of dnge's")


def _refuse_work(work: Path, output: Path) -> None:
    """The result takes the place of all that its folder holds."""
    place, target = work.expanduser().resolve(), output.expanduser().resolve()
    if target in (place, *place.parents):
        raise CheckpointError(f"--work '{work}' lies in what '{output}' will be; name a folder beside it")
    refuse_file(work.expanduser(), "parts of a work")


def _refuse_place(file: Path) -> None:
    if not file.parent.is_dir() or file.is_dir():
        raise PlanError(f"'{file}' can't be written: " + ("it is a folder" if file.is_dir() else "no such folder"))
    refuse_closed(file)


def prune_recipe(options: Namespace) -> Recipe:
    """The recipe that a command asks for, its flags and settings on top."""
    flags = {name: getattr(options, name, None) for name in Prune.RIVALS}
    flags |= {"scorer": options.scorer, "seed": options.seed}
    return resolve(options.recipe, assignments(options.set, flags))


def lora_recipe(options: Namespace) -> LoraRecipe:
    """The recipe of a placement, its flags and settings on top."""
    return resolve(options.recipe, assignments(options.set, {"placer": options.placer}), LoraRecipe)


def asked_tasks(options: Namespace) -> Tasks | None:
    """The tasks that a command puts to models, if it names any."""
    if options.tasks:
        folder = options.task_folder
        return Tasks(options.tasks, None if folder is None else folder.expanduser(), options.task_limit)
    for option in ("task_folder", "task_limit"):
        if getattr(options, option) is not None:
            name = option.replace("_", "-")
            raise DataError(f"--{name} is about tasks, and none is named; name them (--tasks NAMES)")
    return None


def _least_bytes(options: Namespace, recipe: Recipe | None) -> float:
    """What the smaller model takes at least, as far as that is known."""
    folder = whole_folder(Path(options.model))
    if recipe is None or options.dtype or not folder.is_dir():
        return 0
    read_config(folder)
    return least_bytes(folder, recipe.prune)
