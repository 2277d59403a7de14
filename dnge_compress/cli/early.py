"""What a command line tells before anything heavy is loaded: wrong recipes, models, data, and places for results."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from dnge_compress.checkpoint.model_files import read_config, refuse_missing, weight_files
from dnge_compress.checkpoint.targets import refuse_closed, refuse_target
from dnge_compress.core.errors import PlanError
from dnge_compress.core.folders import whole_folder
from dnge_compress.jobs.data.sources import source_of
from dnge_compress.recipes.library import assignments, resolve
from dnge_compress.recipes.lora_schema import LoraRecipe
from dnge_compress.recipes.schema import Recipe


def refuse_early(options: Namespace) -> None:
    """Raise a DngeError where a command on a model can't go well."""
    recipe = None
    if options.function == "place":
        lora_recipe(options)
    elif options.function not in ("apply", "vocabulary"):  # a plan has its own
        recipe = prune_recipe(options)
    refuse_missing(options.model)
    if options.data and options.function != "vocabulary":  # which reads any text
        source_of(Path(options.data))
    output = getattr(options, "output", None)
    if output and options.function in ("compress", "apply", "vocabulary"):
        refuse_target(Path(output), options.force, _least_bytes(options, recipe))
    elif output:
        _refuse_place(Path(output))


def _refuse_place(file: Path) -> None:
    if not file.parent.is_dir() or file.is_dir():
        raise PlanError(f"'{file}' can't be written: " + ("it is a folder" if file.is_dir() else "no such folder"))
    refuse_closed(file)


def prune_recipe(options: Namespace) -> Recipe:
    """The recipe that a command asks for, its flags and settings on top."""
    flags = {"ratio": options.ratio, "scorer": options.scorer, "seed": options.seed}
    return resolve(options.recipe, assignments(options.set, flags))


def lora_recipe(options: Namespace) -> LoraRecipe:
    """The recipe of a placement, its flags and settings on top."""
    return resolve(options.recipe, assignments(options.set, {"placer": options.placer}), LoraRecipe)


def _least_bytes(options: Namespace, recipe: Recipe | None) -> float:
    """What the smaller model takes at least: nobody removes more than the ratio of all its parameters."""
    folder = whole_folder(Path(options.model))
    if recipe is None or options.dtype or not folder.is_dir():
        return 0
    read_config(folder)
    return (1 - recipe.prune.ratio) * sum(file.stat().st_size for file in weight_files(folder))
