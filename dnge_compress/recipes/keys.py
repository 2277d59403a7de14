"""The keys of a recipe: which there are, where each belongs, and how a value is put in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from dnge_compress.core.errors import RecipeError, UnknownNameError
from dnge_compress.recipes.scalars import PlainFloat, PlainInt, two_readings
from dnge_compress.recipes.schema import RecipeSection

Keys = tuple[str, ...]
REMOVED = object()  # as the value of an override: take the key away
# Former names of keys, and of values of `calibration.kind`.
RENAMED = {"probes": "calibration", "protect": "protected"}
RENAMED_KINDS = {"random": "words", "noise": "images"}


def leaves(section: type[RecipeSection]) -> dict[str, list[Keys]]:
    """Leaf name → its paths in a recipe, e.g. "ratio" → [("prune", "ratio")]."""
    found: dict[str, list[Keys]] = {}
    for path in _paths(section):
        found.setdefault(path[-1], []).append(path)
    return found


def keys_at(section: type[RecipeSection], path: Keys) -> Keys:
    """The keys known in the part of a recipe at `path`; () is the recipe itself. List positions are left out."""
    found = _section_at(section, path)
    return () if found is None else tuple(found.model_fields)


def section_of(section: type[RecipeSection], name: str) -> type[RecipeSection] | None:
    """What the key `name` holds, if that is a section, or a list of them, or one that may be absent."""
    field = section.model_fields.get(name)
    return None if field is None else next(_sections_in(field.annotation), None)


def put(raw: dict[str, Any], section: type[RecipeSection], key: str, value: Any) -> Keys:
    """Set `key` ("a.b.0.c", or a leaf name that only one place has) in plain values; returns the path.

    Sections on the way that are absent are made. Raises UnknownNameError for a key nobody knows, RecipeError for one
    with several places.
    """
    path = _place_of(section, key)
    value = settled(value, section, path, lambda _: "override")
    here: Any = raw
    for i, name in enumerate(path[:-1]):
        if isinstance(here, list):
            here = here[_index(here, name, key)]
        else:
            below = here.get(name)
            if isinstance(below, tuple):
                below = list(below)
            if below is None:
                below = [] if path[i + 1].isdigit() else {}
            elif isinstance(below, Mapping):
                below = dict(below)
            here[name] = below
            here = below
        if not isinstance(here, dict | list):
            raise RecipeError(f"override '{key}': '{name}' holds no keys")
    last: Any = _index(here, path[-1], key) if isinstance(here, list) else path[-1]
    holder = _section_at(section, tuple(p for p in path[:-1] if not p.isdigit()))
    if value is not REMOVED and isinstance(here, dict) and holder is not None and path[-1] in holder.RIVALS:
        for rival in holder.RIVALS:
            here.pop(rival, None)
    if value is REMOVED:
        here.pop(last) if isinstance(here, list) else here.pop(last, None)
    else:
        here[last] = value
    return path


def are_rivals(section: type[RecipeSection], one: Keys, other: Keys) -> bool:
    """Whether one key takes the place of the other, so that only one of both can be meant."""
    holder = _section_at(section, tuple(p for p in one[:-1] if not p.isdigit()))
    return one[:-1] == other[:-1] and holder is not None and {one[-1], other[-1]} <= set(holder.RIVALS)


def settled(value: Any, section: type[RecipeSection], path: Keys, where: Callable[[Keys], str]) -> Any:
    """A value at `path` with its numbers as they were written wherever only text may stand.

    Raises RecipeError, which begins with `where` of the path, for a number that other programs read differently.
    """
    if isinstance(value, Mapping):
        return {k: settled(v, section, (*path, str(k)), where) for k, v in value.items()}
    if isinstance(value, list):
        return [settled(v, section, (*path, str(i)), where) for i, v in enumerate(value)]
    if not isinstance(value, PlainInt | PlainFloat):
        return value
    if _wants_text(section, tuple(name for name in path if not name.isdigit())):
        return value.text
    readings = two_readings(value)
    if readings:
        raise RecipeError(
            f"{where(path)}: '{'.'.join(path)}' is {value.text}, which is read as {readings}; write it plainly"
        )
    return value


def _wants_text(section: type[RecipeSection], path: Keys) -> bool:
    """Whether what stands there is text and can't be a number."""
    found: type[RecipeSection] | None = section
    kind: Any = None
    for name in path:
        if found is None or name not in found.model_fields:
            break
        kind = found.model_fields[name].annotation
        found = section_of(found, name)
    kinds = set(_kinds_of(kind)) if found is None else set()
    return bool(kinds) and kinds <= {str, NoneType}


def _kinds_of(kind: Any) -> Iterator[type]:
    """The plain types that values of an annotated type, or the items in it, may have."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        yield from map(type, of)
    elif isinstance(kind, type) and not of:
        yield kind
    else:
        for part in of[1:] if origin is dict else of[:1] if origin is Annotated else of:
            if part is not Ellipsis:
                yield from _kinds_of(part)


def _place_of(section: type[RecipeSection], key: str) -> Keys:
    path = tuple(key.split("."))
    named = tuple(p for p in path if not p.isdigit())
    if named and named[-1] in keys_at(section, named[:-1]):
        return path
    places = leaves(section)
    if len(path) == 1 and key in places:
        if len(places[key]) > 1:
            ways = " or ".join(_addressed(section, place) for place in places[key])
            raise RecipeError(f"'{key}' stands in several places; write {ways}")
        return places[key][0]
    known = [".".join(p) for p in _paths(section)] if "." in key else list(places)
    instead = ".".join(RENAMED.get(p, p) for p in path)
    hint = f"`dnge recipes schema {section.model_fields['recipe'].default}` lists all keys"
    raise UnknownNameError("recipe key", key, known, hint, instead if instead != key else "")


def _section_at(section: type[RecipeSection], path: Keys) -> type[RecipeSection] | None:
    found: type[RecipeSection] | None = section
    for name in path:
        found = section_of(found, name) if found is not None else None
    return found


def _index(values: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(values):
        raise RecipeError(f"override '{key}': there is no '{name}' in a list of {len(values)}")
    return int(name)


def _addressed(section: type[RecipeSection], path: Keys) -> str:
    """A path as an override writes it: of a list of sections the first is named."""
    words: list[str] = []
    here: type[RecipeSection] | None = section
    for name in path:
        words.append(name)
        below = None if here is None else section_of(here, name)
        if below is not None and here is not None and _holds_many(here.model_fields[name].annotation):
            words.append("0")
        here = below
    return ".".join(words)


def _holds_many(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list) or any(map(_holds_many, get_args(kind)))


def _paths(section: type[RecipeSection], prefix: Keys = ()) -> Iterator[Keys]:
    for name in section.model_fields:
        inner = section_of(section, name)
        if inner is None:
            if (*prefix, name) != ("recipe",):
                yield (*prefix, name)
        else:
            yield from _paths(inner, (*prefix, name))


def _sections_in(kind: Any) -> Iterator[type[RecipeSection]]:
    if isinstance(kind, type) and not get_args(kind):
        if issubclass(kind, RecipeSection):
            yield kind
        return
    for part in get_args(kind):
        yield from _sections_in(part)
