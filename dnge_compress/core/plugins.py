"""What is registered by lying in a folder of ours, or by an entry point of somebody else's package.

A third party offers a module in its pyproject, `[project.entry-points."dnge_compress.scorers"]` (or `….placers`,
`….families`), as `name = "its_package.its_module"`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from dnge_compress.core.errors import DataError, DngeError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The modules of a `package` of ours, those that begin with an underscore left out, and the entry points of a
    `group`. `what` one of them is called in messages; `renamed` maps names of old to those of today."""

    what: str
    package: str
    group: str
    renamed: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """All names. Raises DngeError where a third party's is one of ours."""
        ours = self._ours()
        for name, found in self._foreign().items():
            if name in ours:
                whose = found.dist.name if found.dist else found.value
                raise DngeError(f"{whose} offers a {self.what} '{name}', which dnge_compress has itself; uninstall it")
        return sorted({*ours, *self._foreign()})

    def load(self, name: str) -> ModuleType:
        """The module called `name`. Raises UnknownNameError."""
        names = self.names()
        if name not in names:
            raise UnknownNameError(self.what, name, names, instead=self.renamed.get(name, ""))
        foreign = self._foreign()
        module = foreign[name].load() if name in foreign else importlib.import_module(f"{self.package}.{name}")
        if not isinstance(module, ModuleType):
            raise DngeError(f"the entry point '{name}' of {self.group} is no module but a {type(module).__name__}")
        return module

    def usable(self, name: str, has_data: bool) -> ModuleType:
        """The module called `name`, whose `NEEDS_DATA` tells what it needs. Raises DataError if that isn't there."""
        module = self.load(name)
        if module.NEEDS_DATA and not has_data:
            free = [other for other in self._ours() if not self.load(other).NEEDS_DATA]
            raise DataError(
                f"{self.what} '{name}' needs real data; pass data=…, or use one that needs none: {', '.join(free)}"
            )
        return module

    def _ours(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))

    def _foreign(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
