"""Find recipes by name or path, and turn them into a checked Recipe.

resolve("prune/neurons", {"ratio": 0.3})
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dnge_compress.errors import BudgetError, DngeError, RecipeError, UnknownNameError, nearest
from dnge_compress.recipes.schema import Recipe, keys_at, leaves

Keys = tuple[str, ...]
Lines = Mapping[Keys, int]

FOLDER_IN_WHEEL = "_recipes"
SUFFIXES = (".yaml", ".yml")


def resolve(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name ("prune/default"), by path of a YAML file or as it is, with `overrides` on top.

    Overrides are keyed by leaf name (`ratio`) or by path (`prune.ratio`); None leaves the recipe's value. Raises
    UnknownNameError for a name or key nobody knows, BudgetError for a ratio out of range and RecipeError for
    everything else, each in one line.

        resolve("prune/default", {"ratio": 0.3, "scorer": "probe"})
    """
    if isinstance(recipe, Recipe):
        base = recipe
    elif isinstance(recipe, Path) or Path(recipe).suffix in SUFFIXES:
        base = _load(Path(recipe), Path(recipe).stem)
    else:
        base = _load(find(recipe), recipe)
    return _override(base, overrides or {})


def validate(raw: Mapping[str, Any], origin: str = "recipe", lines: Lines | None = None) -> Recipe:
    """The recipe that `raw` spells, e.g. the one stored in a plan; `origin` and `lines` say where errors stand."""
    try:
        return Recipe.model_validate(dict(raw))
    except ValidationError as e:
        raise _explain(e, origin, lines or {}) from None


def names() -> list[str]:
    """The names of all recipes that come with the package, e.g. "prune/default"."""
    return sorted(p.relative_to(folder()).with_suffix("").as_posix() for p in folder().rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of the recipe called `name`. Raises UnknownNameError."""
    if name not in names():
        raise UnknownNameError("recipe", name, names(), "see `dnge recipes ls`, or give the path of a .yaml file")
    return folder() / f"{name}.yaml"


def text(name: str) -> str:
    """The YAML text of the recipe called `name`, comments included. Raises UnknownNameError."""
    return find(name).read_text(encoding="utf-8")


def copy(name: str, target: str | Path, *, force: bool = False) -> Path:
    """Copy the recipe called `name` to a file (or into a folder), to be edited. Raises RecipeError if it exists."""
    source = text(name)
    path = Path(target) / f"{Path(name).name}.yaml" if Path(target).is_dir() else Path(target)
    if path.exists() and not force:
        raise RecipeError(f"'{path}' exists; choose another name, or pass --force to replace it")
    try:
        path.write_text(source, encoding="utf-8")
    except OSError as e:
        raise RecipeError(f"'{path}' can't be written: {e.strerror}") from None
    return path


def folder() -> Path:
    """Where the recipes are: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / FOLDER_IN_WHEEL, package.parent / "recipes"):
        if place.is_dir():
            return place
    raise RecipeError(f"the recipes are missing beside {package}; install dnge-compress again")


def _load(path: Path, name: str) -> Recipe:
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"recipe file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"recipe file '{path}' can't be read: {e}") from None
    raw, lines = _parse(source, str(path))
    return validate({"name": name, **raw}, str(path), lines)


def _parse(source: str, origin: str) -> tuple[dict[str, Any], Lines]:
    """Plain values and the line of every key. Aliases are refused: they could grow without end."""
    lines: dict[Keys, int] = {}
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(source, yaml.SafeLoader)):
            raise RecipeError(f"{origin}: aliases (*name) are not allowed in a recipe")
        loader = yaml.SafeLoader(source)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{origin}: a recipe is a mapping of keys to values")
        return _mapping(loader, root, (), lines, origin), lines
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise RecipeError(f"{origin}{line}: not valid YAML: {e.problem or e.context}") from None
    except (yaml.YAMLError, ValueError) as e:
        if isinstance(e, DngeError):
            raise
        raise RecipeError(f"{origin}: not valid YAML: {' '.join(str(e).split())}") from None


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: Keys, lines: dict[Keys, int], origin: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        here = f"{origin}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{here}: a key must be a word")
        key = str(key_node.value)
        if key in values:
            raise RecipeError(f"{here}: key '{'.'.join((*path, key))}' stands twice")
        lines[(*path, key)] = key_node.start_mark.line + 1
        if isinstance(value_node, yaml.MappingNode):
            values[key] = _mapping(loader, value_node, (*path, key), lines, origin)
        else:
            values[key] = loader.construct_object(value_node, deep=True)
    return values


def _override(base: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    given = {key: value for key, value in overrides.items() if value is not None}
    if not given:
        return base
    paths = leaves()
    known = {**paths, **{".".join(path): path for path in paths.values()}}
    raw = base.model_dump()
    for key, value in given.items():
        if key not in known:
            raise UnknownNameError("recipe key", key, known if "." in key else paths, "see recipes/README.md")
        *sections, leaf = known[key]
        target = raw
        for section in sections:
            target = target[section]
        target[leaf] = value
    return validate(raw, "override")


def _explain(error: ValidationError, origin: str, lines: Lines) -> DngeError:
    """The first problem of a validation, in one line: where, which key, what would be right."""
    problem = error.errors(include_url=False)[0]
    loc = tuple(str(part) for part in problem["loc"] if not isinstance(part, int))
    line = next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)
    where, key = (f"{origin}:{line}" if line else origin), ".".join(loc)
    value, kind, message = problem["input"], problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return RecipeError(f"{where}: unknown key '{key}'; {_place(loc)}")
    if loc == ("prune", "ratio") and kind in ("greater_than_equal", "less_than", "finite_number"):
        prefix = f"{where}: " if lines else ""
        return BudgetError(f"{prefix}ratio must be at least 0 and below 1, not {value}")
    if kind == "model_type":
        return RecipeError(f"{where}: '{key}' must hold keys ({', '.join(keys_at(loc))}), not {value!r}")
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
    what = re.sub(r"^(Input|Value|String) should", "should", message)
    shown = f", not {value!r}" if not isinstance(value, Mapping) and "not" not in what else ""
    close = nearest(value, _choices(problem)) if isinstance(value, str) and kind == "literal_error" else ""
    return RecipeError(f"{where}: '{key}' {what}{shown}{'; ' + close if close.startswith('did') else ''}")


def _place(loc: Keys) -> str:
    """Where an unknown key should go: into another section, or spelled differently."""
    *section, name = loc
    elsewhere = leaves().get(name)
    if elsewhere:
        inside = elsewhere[:-1]
        return f"it belongs under '{'.'.join(inside)}'" if inside else "it belongs at the top level"
    return nearest(name, keys_at(tuple(section)))


def _choices(problem: Mapping[str, Any]) -> list[str]:
    return str(problem["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
