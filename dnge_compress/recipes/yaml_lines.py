"""YAML text as plain values, with the line of every key. Nothing is constructed but numbers, strings, lists, maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dnge_compress.core.errors import DngeError, RecipeError
from dnge_compress.recipes.keys import REMOVED
from dnge_compress.recipes.scalars import Loader, scalar

Place = tuple[str, ...]  # keys and list positions, as strings
Lines = Mapping[Place, int]
DEEPEST = 32  # recipes need five; PyYAML takes minutes over thousands


def read(path: Path) -> tuple[dict[str, Any], Lines, set[Place]]:
    """Values and lines of a recipe file, and the keys behind which nothing stands. Raises RecipeError that names the
    file and, where known, the line."""
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"recipe file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"recipe file '{path}' can't be read: {getattr(e, 'strerror', None) or e}") from None
    return parse(source, str(path))


def parse(source: str, origin: str) -> tuple[dict[str, Any], Lines, set[Place]]:
    """Values and lines of YAML text, and its empty keys. Aliases are refused: they could grow without end."""
    lines: dict[Place, int] = {}
    empty: set[Place] = set()
    try:
        loader, root = _root(source, origin)
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{origin}: a recipe is a mapping of keys to values")
        return _value(loader, root, (), lines, origin, empty), lines, empty
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise RecipeError(f"{origin}{line}: not valid YAML: {e.problem or e.context}") from None
    except (yaml.YAMLError, ValueError) as e:
        if isinstance(e, DngeError):
            raise
        raise RecipeError(f"{origin}: not valid YAML: {' '.join(str(e).split())}") from None


def parse_value(source: str, key: str, origin: str) -> Any:
    """One YAML value, e.g. behind the equals sign of an override of `key`; null is REMOVED. Raises RecipeError."""
    try:
        loader, root = _root(source, origin)
        if root is None or _is_empty(root):
            raise RecipeError(f"{origin}: nothing stands behind '='; write {key}=null or ~{key} to take the key away")
        value = _value(loader, root, tuple(key.split(".")), {}, origin, set(), has_lines=False)
    except (yaml.YAMLError, ValueError) as e:
        if isinstance(e, DngeError):
            raise
        raise RecipeError(f"{origin}: the value can't be read; quote it") from None
    return REMOVED if value is None else value


def _root(source: str, origin: str) -> tuple[Loader, yaml.Node | None]:
    depth = 0
    for event in yaml.parse(source, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(f"{origin}: aliases (*name) are not allowed in a recipe")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecipeError(f"{origin}: brackets and keys are nested more than {DEEPEST} deep; close them")
    loader = Loader(source)
    return loader, loader.get_single_node()


def _is_empty(node: yaml.Node) -> bool:
    """Whether nothing stands there, not even quotes or null."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == ""


def _value(
    loader: Loader,
    node: yaml.Node,
    place: Place,
    lines: dict[Place, int],
    origin: str,
    empty: set[Place],
    has_lines: bool = True,
) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == loader.DEFAULT_MAPPING_TAG:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            here = f"{origin}:{line}" if has_lines else origin
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{here}: a key must be a word")
            key = str(key_node.value)
            if key in values:
                raise RecipeError(f"{here}: key '{'.'.join((*place, key))}' stands twice")
            lines[(*place, key)] = line
            if _is_empty(value_node):
                empty.add((*place, key))
            values[key] = _value(loader, value_node, (*place, key), lines, origin, empty, has_lines)
        return values
    if isinstance(node, yaml.SequenceNode) and node.tag == loader.DEFAULT_SEQUENCE_TAG:
        for i, item in enumerate(node.value):
            lines[(*place, str(i))] = item.start_mark.line + 1
        items = enumerate(node.value)
        return [_value(loader, item, (*place, str(i)), lines, origin, empty, has_lines) for i, item in items]
    return scalar(loader, node)
