"""Modules that are registered by lying in a folder: their names, and one by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

from dnge_compress.core.errors import DataError, UnknownNameError


def names_in(package: ModuleType) -> list[str]:
    """The modules of a package, those that begin with an underscore left out."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def known(what: str, name: str, package: ModuleType, has_data: bool) -> ModuleType:
    """The module `name` of a package of `what`s, which offer `NEEDS_DATA`.

    Raises UnknownNameError, or DataError if it needs data and there is none.
    """
    names: Sequence[str] = names_in(package)
    if name not in names:
        raise UnknownNameError(what, name, names)
    module = importlib.import_module(f"{package.__name__}.{name}")
    if module.NEEDS_DATA and not has_data:
        raise DataError(f"{what} '{name}' needs real data; pass data=…, or use {what} 'probe' or 'encoder'")
    return module
