"""The JSON of plans: written to be read and edited, one entry of a list a line, and read back strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dnge_compress.core.errors import CheckpointError, DngeError, PlanError, first_line
from dnge_compress.core.files import read_text
from dnge_compress.core.strict_json import read_strictly, unrepeated

P = TypeVar("P")
# By the key that marks it.
PLANS = {
    "dnge_plan": "plan of what to prune",
    "dnge_lora_plan": "plan of LoRA adapters",
    "dnge_vocabulary": "plan of which tokens stay",
}
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlanFormat:
    """The key that marks a plan, the version it holds, and the command that makes such plans."""

    key: str
    version: int
    command: str


def file_text(file: Path) -> str:
    """What a plan's file holds. Raises PlanError naming it."""
    try:
        return read_text(file.expanduser())
    except CheckpointError as e:
        raise PlanError(f"plan {e}") from None


def plan_in(text: str) -> str:
    """What kind of plan a text holds, in words; "" if none."""
    try:
        return _what(json.loads(text))
    except (ValueError, RecursionError):
        return ""


def plan_text(values: Mapping[str, Any], *by_line: str) -> str:
    """JSON text with the entries of the keys `by_line`, which come last, on a line each."""
    head = json.dumps({k: v for k, v in values.items() if k not in by_line}, indent=1, ensure_ascii=False)
    parts = [head.removesuffix("\n}")]
    for key in by_line:
        text = (json.dumps(entry, ensure_ascii=False) for entry in values[key])
        if isinstance(values[key], Mapping):
            text = (f"{json.dumps(k, ensure_ascii=False)}: {json.dumps(v)}" for k, v in values[key].items())
        start, end = "{}" if isinstance(values[key], Mapping) else "[]"
        parts.append(f' "{key}": {start}\n  ' + ",\n  ".join(text) + f"\n {end}")
    return ",\n".join(parts) + "\n}\n"


def read_plan(kind: type[P], text: str, origin: str, form: PlanFormat, arrange: Callable[[Values], Values]) -> P:
    """The plan of a `kind` that `text` holds; `arrange` gives the values the shape of its fields.

    Raises PlanError that names `origin` for what is no JSON, another version, or an entry that is unknown, missing or
    of the wrong type.
    """
    try:
        raw = json.loads(text, object_pairs_hook=unrepeated)
        what = _what(raw)
        if what and form.key not in raw:
            raise PlanError(f"{origin} is a {what}, and a {PLANS[form.key]} is asked for")
        if not isinstance(raw, dict) or raw.pop(form.key, None) != form.version:
            raise PlanError(f"{origin} is no plan of version {form.version} (key '{form.key}')")
        return read_strictly(kind, arrange(raw), origin)
    except json.JSONDecodeError as e:
        raise PlanError(f"{origin} is no JSON: {e.msg} at line {e.lineno}; make a plan with `{form.command}`") from None
    except RecursionError:
        raise PlanError(f"{origin} is nested too deeply; make a plan with `{form.command}`") from None
    except DngeError as e:
        raise PlanError(f"{e}; correct it, or make a plan with `{form.command}`") from None
    except ValueError as e:  # a number of thousands of digits
        raise PlanError(f"{origin} is no JSON: {first_line(e)}; make a plan with `{form.command}`") from None


def _what(raw: Any) -> str:
    return next((what for key, what in PLANS.items() if isinstance(raw, dict) and key in raw), "")
