"""What scores rest on, and the first file of saved ones, which is read before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnge_compress.core.errors import CheckpointError, PlanError
from dnge_compress.core.folders import whole_folder
from dnge_compress.core.strict_json import json_values, read_json, read_strictly
from dnge_compress.recipes.schema import Recipe

HEADER = "dnge_scores.json"
KEY, VERSION = "dnge_scores", 2
MEASURED = ("layer", "expert")  # kinds whose costs no closed form gives
AGAIN = "score again (dnge score MODEL -o SCORES)"


@dataclass(frozen=True, kw_only=True)
class Basis:
    """A model, by fingerprints of its shapes and of a sample of its values, and all settings that scores depend on.
    `measured` are the kinds, of blocks and whole experts, whose costs were measured since they might go; `data`
    fingerprints the user's inputs, "" where they were synthetic."""

    base: str
    weights: str
    dtype: str
    scorer: str
    ridge: float
    measured: tuple[str, ...]
    calibration: Mapping[str, Any]
    data: str

    def refuse_recipe(self, recipe: Recipe, origin: str) -> None:
        """Raise PlanError, naming the setting, if a recipe would score otherwise; `origin` is what the scores are
        called."""
        wanted = {"scorer": recipe.scorer, "ridge": recipe.repair.ridge, **json_values(recipe.calibration.model_dump())}
        found = {"scorer": self.scorer, "ridge": self.ridge, **self.calibration}
        for key, value in wanted.items():
            if found.get(key) != value:
                raise PlanError(
                    f"{origin} were made with {key} {_shown(found.get(key))}, and the recipe says {_shown(value)}; "
                    f"write {key}={_shown(found.get(key))}, or {AGAIN}"
                )
        for kind in MEASURED:
            if kind in recipe.prune.kinds and kind not in self.measured:
                raise PlanError(f"{origin} were made without whole {kind}s, and the recipe names them; {AGAIN}")

    def refuse_model(self, other: Basis, origin: str) -> None:
        """Raise PlanError if they were made for a model of other shapes, values or precision than `other` tells, or on
        other data than it names."""
        if self.base != other.base:
            raise PlanError(f"{origin} were made for another model; score this one")
        if self.weights != other.weights:
            raise PlanError(f"{origin} were made for a model of the same shape with other weights; {AGAIN}")
        if self.dtype != other.dtype:
            raise PlanError(
                f"{origin} were made in {self.dtype}, and this model is in {other.dtype}; open it in {self.dtype}, "
                f"or {AGAIN}"
            )
        if other.data and other.data != self.data:
            made_on = "other data" if self.data else "synthetic inputs"
            raise PlanError(f"{origin} were made on {made_on}; leave data out to plan on the same, or {AGAIN}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a folder of scores says of itself: the basis, notes of the scorer and on the data, how each batch (and each
    that was held out) is arranged (names of a mapping, a number of tensors, or None for one tensor), positions counted
    at every consumer of every space, and which file holds which space; the last two are empty where no signals were
    gathered."""

    basis: Basis
    notes: tuple[str, ...]
    data_notes: tuple[str, ...]
    batches: tuple[Any, ...]
    matrices: Mapping[str, float]
    counts: Mapping[str, tuple[int, ...]]
    files: Mapping[str, str]
    held_out: tuple[Any, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {KEY: VERSION, **json_values(self)}

    @classmethod
    def read(cls, folder: Path) -> Header:
        """Read the header in a folder. Raises PlanError naming it."""
        place = whole_folder(folder) / HEADER
        if not place.is_file():
            what = f"has no {HEADER}" if place.parent.is_dir() else "is no folder"
            raise PlanError(
                f"scores '{folder}' can't be read: it {what}; make them with `dnge score MODEL -o {folder}`"
            )
        try:
            raw = read_json(place)
            version = raw.pop(KEY, None) if isinstance(raw, dict) else None
            if version != VERSION:
                raise PlanError(
                    f"scores '{folder}' are of format {_shown(version)}, and this dnge reads {VERSION}; {AGAIN}"
                )
            return read_strictly(cls, raw, f"'{place}'")
        except CheckpointError as e:
            raise PlanError(f"{e}; {AGAIN}") from None


def refuse_scores(folder: Path, recipe: Recipe) -> None:
    """Raise a DngeError for a folder that holds no scores, or not those of a recipe."""
    Header.read(folder).basis.refuse_recipe(recipe, named(folder))


def refuse_other_content(folder: Path) -> None:
    """Raise PlanError for a place that holds something else than scores, so that they can't take it."""
    place = folder.expanduser()
    if place.exists() and not place.is_dir():
        raise PlanError(f"'{folder}' is a file, and scores are a folder; name another place")
    if place.is_dir() and any(place.iterdir()) and not (place / HEADER).is_file():
        raise PlanError(f"'{folder}' holds something else than scores; name another folder")


def named(folder: Path) -> str:
    """What errors call the scores in a folder."""
    return f"the scores in '{folder}'"


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
