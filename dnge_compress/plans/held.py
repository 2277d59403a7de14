"""What a recipe holds fixed: what lies outside the part of the model that it names, and modules that it protects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch

from dnge_compress.core.errors import BudgetError, UnknownNameError, nearest
from dnge_compress.graph.paths import prefixes
from dnge_compress.graph.types import ModelGraph
from dnge_compress.recipes.schema import Prune


def full_path(part: str, params: Iterable[str]) -> str:
    """The path of the one module that `part` names, in full or by its end, among those that hold these parameters.

    "" is the whole model. Raises UnknownNameError where no module is called that, BudgetError where several are.
    """
    modules = dict.fromkeys(parent for param in params for parent in prefixes(param.rpartition(".")[0]) if parent)
    if part in modules or not part:
        return part
    found = [module for module in modules if module.endswith(f".{part}")]
    if not found:
        towers = [module for module in modules if not any(name.isdigit() for name in module.split("."))]
        raise UnknownNameError("part of the model", part, towers)
    if len(found) > 1:
        named = " or ".join(f"'{module}'" for module in found[:3])
        raise BudgetError(f"within '{part}' names {len(found)} modules of the model; write {named}")
    return found[0]


def inside_of(part: str) -> str:
    """How the names of all that lies in a part begin."""
    return f"{part}." if part else ""


def lies_elsewhere(graph: ModelGraph, names: Iterable[str], prune: Prune) -> bool:
    """Whether nothing of the spaces called `names` is in the part that is pruned."""
    return not any(param.startswith(inside_of(prune.within)) for name in names for param in _params(graph, name))


def held(graph: ModelGraph, names: Sequence[str], prune: Prune) -> list[str]:
    """Why spaces that shrink together can't, as notes: they reach out of the part, or are protected. [] if they can."""
    inside = [name for name in names if _is_within(graph, name, prune.within)]
    reaching = [name for name in names if name not in inside and not lies_elsewhere(graph, (name,), prune)]
    if reaching:
        return [f"{_some(reaching)} stay: they reach out of '{prune.within}'"]
    if len(inside) < len(names):
        remedy = "" if prune.uneven else "; with uneven: true they can shrink alone"
        return [
            f"{_some(inside)} stay: the config has one number for them and for others outside '{prune.within}'{remedy}"
        ]
    if not any(is_protected(param.rpartition(".")[0], prune) for name in names for param in _params(graph, name)):
        return []
    if len(names) == 1 or prune.uneven:
        return [f"{_some(names)} stay: protected"]
    return [
        f"{_some(names)} stay: one of them is protected, and the config has one number for the width of all; "
        "with uneven: true the others can shrink"
    ]


def is_protected(module: str, prune: Prune) -> bool:
    """Whether a module, or one that it lies in, matches a pattern that the recipe protects."""
    return _matches(module, prune.protected)


def refuse_unmatched(graph: ModelGraph, patterns: Iterable[str]) -> None:
    """Raise BudgetError for a pattern of protected modules that matches none."""
    modules = {slot.param.rpartition(".")[0] for slot in graph.slots} | {m for s in graph.spaces for m in s.modules}
    for pattern in patterns:
        if not any(_matches(module, (pattern,)) for module in modules):
            raise BudgetError(f"protected '{pattern}' matches no module of the model; {_meant(pattern, modules)}")


def _meant(pattern: str, modules: Collection[str]) -> str:
    """The nearest pattern that matches: what is written between the stars, beside as many parts of a path."""
    core = pattern.strip("*.")
    length = core.count(".") + 1
    parts = [module.split(".") for module in modules]
    pieces = {".".join(path[i : i + length]) for path in parts for i in range(len(path) - length + 1)}
    close = get_close_matches(core, sorted(pieces), n=1, cutoff=0.5) if core else []
    if not close:
        return nearest(pattern, modules)
    return f"did you mean '{pattern.replace(core, close[0])}'?"


def _is_within(graph: ModelGraph, name: str, part: str) -> bool:
    return all(param.startswith(inside_of(part)) for param in _params(graph, name))


def _params(graph: ModelGraph, name: str) -> list[str]:
    return [slot.param for slot in graph.slots_of(name)]


def _matches(module: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) for path in prefixes(module) if path for pattern in patterns)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{'…' if len(names) > 3 else ''}"
