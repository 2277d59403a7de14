"""JSON files, and frozen dataclasses read from them strictly: every key known, every type right, and an error that
names the place."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dnge_compress.core.errors import CheckpointError, DngeError, first_line, nearest
from dnge_compress.core.files import refuse_unreadable

# JSON has no word for these; a diverged training has losses like that.
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises CheckpointError naming the file."""
    refuse_unreadable(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise CheckpointError(
            f"'{file}' is truncated or corrupt: no JSON ({first_line(e)}); make or fetch it again"
        ) from None


def read_strictly(kind: Any, raw: Any, where: str) -> Any:
    """`raw` as a `kind`: a dataclass, a tuple, a mapping of strings, a choice, or a plain type.

    Raises CheckpointError that says where in the whole, which is called `where`, something is wrong.
    """
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if raw is None else read_strictly(next(k for k in of if k is not type(None)), raw, where)
    if is_dataclass(kind):
        return _read_fields(kind, raw, where)
    if origin is tuple:
        return _read_tuple(of, raw, where)
    if origin is Mapping:
        return {str(key): read_strictly(of[1], value, f"{where}.{key}") for key, value in _mapping(raw, where).items()}
    if origin is Literal and raw not in of:
        raise CheckpointError(f"{where} should be one of {', '.join(of)}, not {raw!r:.80}")
    return raw if origin is Literal or kind is Any else _read_plain(kind, raw, where)


def unrepeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs, for `json.loads`, which itself lets the last of equal keys win. Raises DngeError."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DngeError(f"key '{key}' stands twice")
        found[key] = value
    return found


def json_values(value: Any) -> Any:
    """What JSON can hold of a value that `read_strictly` reads."""
    if is_dataclass(value):
        return {f.name: json_values(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: json_values(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [json_values(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_fields(kind: Any, raw: Any, where: str) -> Any:
    found, hints = _mapping(raw, where), get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in found:
        if key not in known:
            raise CheckpointError(f"{where}: unknown key '{key}'; {nearest(str(key), known)}")
    missing = [n for n, f in known.items() if n not in found and f.default is f.default_factory is MISSING]
    if missing:
        raise CheckpointError(f"{where}: '{missing[0]}' is missing")
    values = {key: read_strictly(hints[key], value, f"{where}.{key}") for key, value in found.items()}
    try:
        return kind(**values)
    except DngeError as e:
        raise CheckpointError(f"{where}: {e}") from None


def _read_tuple(of: tuple[Any, ...], raw: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(raw, list | tuple):
        raise CheckpointError(f"{where} should be a list, not {raw!r:.80}")
    if of[1:] == (...,):
        return tuple(read_strictly(of[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if len(raw) != len(of):
        raise CheckpointError(f"{where} should have {len(of)} items, not {len(raw)}")
    return tuple(read_strictly(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(of, raw, strict=True)))


def _read_plain(kind: type, raw: Any, where: str) -> Any:
    if kind is float and isinstance(raw, str) and raw in NOT_FINITE:
        return NOT_FINITE[raw]
    is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
    if kind is float and is_number:
        return float(raw)
    if kind in (int, str, bool) and type(raw) is kind:
        return raw
    name = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}[kind]
    raise CheckpointError(f"{where} should be {name}, not {raw!r:.80}")


def _mapping(raw: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{where} should hold keys, not {raw!r:.80}")
    return raw
