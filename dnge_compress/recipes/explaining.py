"""The first thing that is wrong with a recipe, in one line: where, which key, what would be right."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import ValidationError

from dnge_compress.core.errors import BudgetError, DngeError, RecipeError, nearest
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.keys import RENAMED, RENAMED_KINDS, Keys, keys_at, leaves
from dnge_compress.recipes.schema import RecipeSection
from dnge_compress.recipes.yaml_lines import Lines, Place

BESIDE_WORDS = {"float": "a number", "int": "a whole number", "bool": "true, false"}  # by pydantic's kinds of errors


def explain(
    error: ValidationError, section: type[RecipeSection], origin: str, lines: Lines, overridden: Collection[Place] = ()
) -> DngeError:
    """What to raise for a failed validation. `overridden` are the places that the file isn't to blame for."""
    problem = _first(error)
    steps = _steps(problem["loc"], section)
    place, keys = tuple(map(str, steps)), tuple(s for s in steps if isinstance(s, str))
    line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)
    where = f"{origin}:{line}" if line else origin
    is_one_of_many = bool(steps) and isinstance(steps[-1], int) and not isinstance(problem["input"], Mapping)
    key = ".".join(place[:-1] if is_one_of_many else place)
    is_override = any(place[: len(o)] == o for o in overridden)
    if is_override:
        where = "override"
    value, kind, message = problem["input"], problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return RecipeError(f"{where}: unknown key '{key}'; {_right_place(keys, section)}")
    if keys == ("prune", "ratio") and kind in ("greater_than_equal", "less_than", "finite_number"):
        prefix = f"{where}: " if lines and not is_override else ""
        return BudgetError(f"{prefix}ratio must be at least 0 and below 1, not {value}")
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        if value is None:
            return empty_section(where, key)
        known = ", ".join(keys_at(section, keys))
        return RecipeError(f"{where}: '{key}' must hold keys ({known}), not {value!r}")
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
    choice = _choice_beside(problem, error)
    if choice is not None:
        others = str(choice["ctx"]["expected"]).replace("'", "")
        problem, kind, message = (
            choice,
            "literal_error",
            f"should be {BESIDE_WORDS[kind.partition('_')[0]]} or {others}",
        )
    what = re.sub(r"^(Input|Value|String|Tuple) should", "should", message).replace("valid tuple", "valid list")
    shown = f", not {value!r}" if not isinstance(value, Mapping | RecipeSection) and "not" not in what else ""
    close = nearest(value, _choices(problem)) if isinstance(value, str) and kind == "literal_error" else ""
    if keys[-2:] == ("calibration", "kind") and isinstance(value, str) and value in RENAMED_KINDS:
        close = f"did you mean '{RENAMED_KINDS[value]}', which '{value}' is called now?"
    if keys == ("prune", "of") and kind == "literal_error" and not close.startswith("did"):
        close = "did you mean prune.within, a part of the model?"
    named = f"'{key}' " if key else ""
    return RecipeError(f"{where}: {named}{what}{shown}{'; ' + close if close.startswith('did') else ''}")


def empty_section(where: str, key: str) -> RecipeError:
    """The error for a section with nothing in it, at a place in a recipe."""
    return RecipeError(f"{where}: '{key}' is empty; write `{key}: {{}}` for its defaults, or take it out")


def _first(error: ValidationError) -> Mapping[str, Any]:
    """Of a choice between types, pydantic reports every branch; the literal's choices say most."""
    problems = error.errors(include_url=False)
    first = problems[0]
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    return unknown[0] if unknown and not first["loc"] else first


def _choice_beside(first: Mapping[str, Any], error: ValidationError) -> Mapping[str, Any] | None:
    """The words that may stand where a number, or true or false, may as well, if what stands there is neither."""
    if first["type"].partition("_")[0] not in BESIDE_WORDS or not first["type"].endswith(("_parsing", "_type")):
        return None
    beside = (p for p in error.errors(include_url=False) if p["loc"][:-1] == first["loc"][:-1])
    return next((p for p in beside if p["type"] == "literal_error"), None)


def _steps(loc: tuple[int | str, ...], section: type[RecipeSection]) -> list[int | str]:
    """The keys and list positions of a location; pydantic puts names of types in between, which nobody wrote."""
    found: list[int | str] = []
    for part in loc:
        known = keys_at(section, tuple(s for s in found if isinstance(s, str)))
        if isinstance(part, int) or known:
            found.append(part)
    return found


def _right_place(keys: Keys, section: type[RecipeSection]) -> str:
    """Where an unknown key should go: into another section, or spelled differently."""
    *above, name = keys
    elsewhere = leaves(section).get(name, []) if name != "recipe" else []
    if elsewhere:
        inside = [".".join(path[:-1]) for path in elsewhere]
        return "it belongs " + " or ".join(f"under '{i}'" if i else "at the top level" for i in inside)
    if section is not Job and not above and name in keys_at(Job, ()):
        return f"'{name}' is for jobs: write recipe: job at the top"
    if name in RENAMED:
        return f"it is called '{RENAMED[name]}' now"
    return familiar().get(name) or nearest(name, keys_at(section, tuple(above)))


@cache
def familiar() -> dict[str, str]:
    """Key of another tool, or of transformers before 5 → what to write instead; from hints.yaml."""
    found: dict[str, str] = yaml.safe_load(files(__package__).joinpath("hints.yaml").read_text(encoding="utf-8"))
    return found


def _choices(problem: Mapping[str, Any]) -> list[str]:
    return str(problem["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
