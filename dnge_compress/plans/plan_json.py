"""The JSON of plans, read strictly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dnge_compress.core.errors import PlanError


def plan_values(
    text: str, mark: tuple[str, str, int], *, known: Iterable[str], needed: Iterable[str]
) -> dict[str, Any]:
    """The values in a plan's JSON; `mark` is what it is called, the key that tells so, and the version read here.

    Raises PlanError for what is no JSON, another version, an unknown or a missing key.
    """
    what, key, version = mark
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as e:
        raise PlanError(f"the plan is no JSON: {e.msg} at line {e.lineno}") from None
    if not isinstance(raw, dict) or raw.get(key) != version:
        raise PlanError(f"not a {what} of version {version} (key '{key}')")
    strangers = [name for name in raw if name not in {key, *known}]
    if strangers:
        raise PlanError(f"unknown key '{strangers[0]}' in the plan")
    missing = [name for name in needed if name not in raw]
    if missing:
        raise PlanError(f"the plan lacks {', '.join(missing)}")
    return raw
