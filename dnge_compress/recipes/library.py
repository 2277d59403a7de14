"""Find recipes by name or path, and turn them into checked ones: a prune recipe, a LoRA placement, or a whole job."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dnge_compress.core.claims import claimed
from dnge_compress.core.errors import RecipeError, UnknownNameError, nearest
from dnge_compress.core.files import write_whole
from dnge_compress.core.wording import kind as kind_word
from dnge_compress.recipes.explaining import empty_section, explain
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.keys import REMOVED, are_rivals, put, section_of, settled
from dnge_compress.recipes.lora_schema import LoraRecipe
from dnge_compress.recipes.schema import Recipe, RecipeSection
from dnge_compress.recipes.yaml_lines import Lines, Place, parse_value, read

AnyRecipe = Recipe | LoraRecipe | Job
R = TypeVar("R", bound=Recipe | LoraRecipe | Job)
S = TypeVar("S", bound=RecipeSection)

KINDS: dict[str, type[AnyRecipe]] = {"prune": Recipe, "lora": LoraRecipe, "job": Job}
VERBS = {"prune": "dnge compress", "lora": "dnge place", "job": "dnge run"}
FOLDER_IN_WHEEL = "_recipes"
SUFFIXES = (".yaml", ".yml")


def resolve(
    recipe: str | Path | Mapping[str, Any] | R,
    overrides: Mapping[str, Any] | None = None,
    kind: type[R] = Recipe,  # type: ignore[assignment]  # mypy can't bind a type variable by its default
) -> R:
    """A recipe by name ("prune/default"), by path of a YAML file, as a mapping or as it is, with `overrides` on top.

    Overrides are keyed by leaf name (`ratio`) or by path (`prune.ratio`, `datasets.0.path`); None leaves the recipe's
    value, `keys.REMOVED` takes it away. Raises UnknownNameError for a name or key nobody knows, BudgetError for a ratio
    out of range and RecipeError for everything else, another kind of recipe included, each in one line.

        resolve("prune/default", {"ratio": 0.3, "scorer": "obs"})
    """
    wanted = kind.model_fields["recipe"].default
    found = load({"recipe": wanted, **recipe} if isinstance(recipe, Mapping) else recipe, overrides)
    if not isinstance(found, kind):
        raise RecipeError(
            f"'{found.name or recipe}' is a {found.recipe} recipe, not a {wanted} recipe; "
            f"it is for `{VERBS[found.recipe]}`"
        )
    return found


def load(recipe: str | Path | Mapping[str, Any] | AnyRecipe, overrides: Mapping[str, Any] | None = None) -> AnyRecipe:
    """A recipe of whichever kind it is, with `overrides` on top; see `resolve`."""
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if isinstance(recipe, AnyRecipe):
        if not given:
            return recipe
        raw, origin = recipe.model_dump(), "override"
        lines: Lines = {}
    else:
        raw, origin, lines = _open(recipe)
    kind = _kind_of(raw, origin, lines)
    overridden: dict[Place, str] = {}
    for key, value in given.items():
        place = put(raw, kind, key, value)
        if place in overridden:
            raise RecipeError(f"override '{key}' stands twice: '{overridden[place]}' is the same key")
        for other, said in overridden.items():
            if are_rivals(kind, place, other):
                raise RecipeError(
                    f"'{said}' and '{key}' are both given, and one takes the place of the other; give one"
                )
        overridden[place] = key
    return _checked(raw, kind, origin, lines, overridden)


def validate(
    raw: Mapping[str, Any],
    origin: str = "recipe",
    lines: Lines | None = None,
    kind: type[S] = Recipe,  # type: ignore[assignment]
) -> S:
    """The recipe that `raw` spells, e.g. the one in a plan; `origin` and `lines` say where errors stand."""
    return _checked(settled(dict(raw), kind, (), lambda _: origin), kind, origin, lines or {})


def kind_of(recipe: str | Path) -> str:
    """What the recipe of a name or file says it is, "prune", "lora" or "job"; nothing else in it is looked at."""
    raw, origin, lines = _open(recipe)
    return str(_kind_of(raw, origin, lines).model_fields["recipe"].default)


def assignments(words: Sequence[str], flags: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Overrides from words: "a.b=c" (c is YAML), "a.b=null" or "~a.b" to take a key away; and from given flags.

    Raises RecipeError, also for a key that stands twice.
    """
    found = {key: value for key, value in (flags or {}).items() if value is not None}
    for word in words:
        key, equals, value = word.partition("=")
        is_removed = word.startswith("~") and not equals
        if not is_removed and (not equals or not key.strip()):
            raise RecipeError(f"'{word}': write KEY=VALUE, e.g. compensate=bias")
        key = word[1:].strip() if is_removed else key.strip()
        if key in found:
            raise RecipeError(f"'{word}': override '{key}' stands twice; give it once")
        found[key] = REMOVED if is_removed else parse_value(value, key, f"'{word}'")
    return found


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
    with claimed(path):
        if path.exists() and not force:
            raise RecipeError(f"'{path}' exists; choose another name, or pass --force to replace it")
        write_whole(path, source)
    return path


def folder() -> Path:
    """Where the recipes are: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / FOLDER_IN_WHEEL, package.parent / "recipes"):
        if place.is_dir():
            return place
    raise RecipeError(f"the recipes are missing beside {package}; install dnge-compress again")


def _open(recipe: Any) -> tuple[dict[str, Any], str, Lines]:
    """Values, origin and lines; relative paths of a user's own file are made absolute, from where the file is."""
    if isinstance(recipe, Mapping):
        return dict(recipe), "the recipe", {}
    if not isinstance(recipe, str | Path):
        raise RecipeError(
            f"a recipe is a name, the path of a file or a mapping, not a {kind_word(recipe)}; leave it out, or write "
            'compress(model, "prune/default", ratio=0.3)'
        )
    is_file = isinstance(recipe, Path) or Path(recipe).suffix in SUFFIXES
    path = Path(recipe) if is_file else find(str(recipe))
    raw, lines, empty = read(path)
    _refuse_empty(raw, path, lines, empty)
    kind = _kind_of(raw, str(path), lines)

    def line(place: Place) -> str:
        return f"{path}:{lines[place]}" if place in lines else str(path)

    raw = {"name": path.stem if is_file else str(recipe), **settled(raw, kind, (), line)}
    if is_file and raw.get("recipe") == "job":
        anchor(raw, path.resolve().parent)
    return raw, str(path), lines


def _refuse_empty(raw: Mapping[str, Any], path: Path, lines: Lines, empty: Collection[Place]) -> None:
    """A section that may be absent would count as that if nothing stood in it: an empty `lora` would train everything.
    One that says null is absent. Raises RecipeError."""
    kind = KINDS.get(str(raw.get("recipe", "prune")), Recipe)
    for key in raw:
        may_be_absent = section_of(kind, key) is not None and kind.model_fields[key].default is None
        if (key,) in empty and may_be_absent:
            raise empty_section(f"{path}:{lines[(key,)]}", key)


def anchor(raw: dict[str, Any], beside: Path) -> None:
    """Make a job's relative paths absolute: the output folder's always, those of models and data where there is such a
    file or they are spelled as paths."""
    if isinstance(raw.get("output_dir"), str) and raw["output_dir"]:
        raw["output_dir"] = str(beside / Path(raw["output_dir"]).expanduser())
    if isinstance(raw.get("model_name_or_path"), str):
        raw["model_name_or_path"] = _beside(raw["model_name_or_path"], beside)
    distill = raw.get("distill")
    if isinstance(distill, dict) and isinstance(distill.get("teacher"), str):
        distill["teacher"] = _beside(distill["teacher"], beside)
    sources = [raw.get(key) for key in ("datasets", "eval_datasets")]
    for source in (s for listed in sources if isinstance(listed, list | tuple) for s in listed):
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = _beside(source["path"], beside)


def _beside(value: str, folder: Path) -> str:
    """An absolute path for what exists beside the recipe or is spelled as a path; a hub id stays as it is."""
    if not value:
        return value
    place = folder / value
    is_path = value.startswith((".", "~", "/")) or Path(value).suffix in (".jsonl", ".json", ".csv", ".parquet", ".txt")
    return str(Path(value).expanduser() if value.startswith("~") else place) if is_path or place.exists() else value


def _kind_of(raw: Mapping[str, Any], origin: str, lines: Lines) -> type[AnyRecipe]:
    kind = raw.get("recipe", "prune")
    if not isinstance(kind, str) or kind not in KINDS:
        where = f"{origin}:{lines[('recipe',)]}" if ("recipe",) in lines else origin
        raise RecipeError(
            f"{where}: 'recipe' should be one of {', '.join(KINDS)}, not {kind!r}; {nearest(str(kind), KINDS)}"
        )
    return KINDS[kind]


def _checked(raw: dict[str, Any], kind: type[S], origin: str, lines: Lines, overridden: Collection[Place] = ()) -> S:
    try:
        return kind.model_validate(raw)
    except ValidationError as e:
        raise explain(e, kind, origin, lines, overridden) from None
