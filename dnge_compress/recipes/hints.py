"""What to write instead of the keys that people bring along from other tools, or from transformers before 5."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml

from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.keys import RENAMED, Keys, keys_at


def hint(keys: Keys, recipe: str) -> str:
    """What to do about an unknown key of a recipe of the kind `recipe`, or ''."""
    if recipe != "job" and len(keys) == 1 and keys[0] in keys_at(Job, ()):
        return f"'{keys[0]}' is for jobs: write recipe: job at the top"
    if keys[-1] in RENAMED:
        return f"it is called '{RENAMED[keys[-1]]}' now"
    return familiar().get(keys[-1], "")


@cache
def familiar() -> dict[str, str]:
    """Key of another tool → what to do about it; written in hints.yaml."""
    found: dict[str, str] = yaml.safe_load(files(__package__).joinpath("hints.yaml").read_text(encoding="utf-8"))
    return found
