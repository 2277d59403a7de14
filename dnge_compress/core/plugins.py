"""Registries: modules found by their file in a folder of ours, or by an entry point of somebody else's package.

A third party offers a module in its pyproject, `[project.entry-points."dnge_compress.scorers"]` (or `….placers`,
`….families`), as `name = "its_package.its_module"`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from dnge_compress.core.errors import DataError, DngeError, UnknownNameError, first_line


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The modules of `package`, apart from those that begin with an underscore, and the entry points of `group`, which
    is called dnge_compress.scorers for the package dnge_compress.scorers, dnge_compress.placers for ….lora.placers.

    `what` is what messages call one of them, `offers` are the names that each has to define, and `renamed` maps
    former names to the present ones.
    """

    what: str
    package: str
    offers: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The name under which other packages offer modules."""
        return f"dnge_compress.{self.package.rpartition('.')[2]}"

    def names(self) -> list[str]:
        """All names. Raises DngeError where two packages offer the same one."""
        owners = dict.fromkeys(self._ours(), "dnge_compress")
        for point in entry_points(group=self.group):
            if point.name in owners:
                first = owners[point.name]
                raise DngeError(
                    f"{_owner(point)} offers a {self.what} '{point.name}', which {first} has as well; uninstall it"
                )
            owners[point.name] = _owner(point)
        return sorted(owners)

    def load(self, name: str) -> ModuleType:
        """The module called `name`. Raises UnknownNameError, and DngeError for a third party's that is broken."""
        names = self.names()
        if name not in names:
            raise UnknownNameError(self.what, name, names, instead=self.renamed.get(name, ""))
        point = next((p for p in entry_points(group=self.group) if p.name == name), None)
        return importlib.import_module(f"{self.package}.{name}") if point is None else self._foreign(point)

    def usable(self, name: str, has_data: bool) -> ModuleType:
        """The module called `name`, whose `NEEDS_DATA` tells what it needs. Raises DataError if that isn't there."""
        module = self.load(name)
        if module.NEEDS_DATA and not has_data:
            raise self._lack(name)
        return module

    def refuse_unusable(self, name: str, has_data: bool) -> None:
        """Raise what `usable` raises; modules of ours are read for it, not imported."""
        if name not in self._ours():
            self.usable(name, has_data)
            return
        self.names()  # nobody else may offer the same
        if self.needs_data(name) and not has_data:
            raise self._lack(name)

    def needs_data(self, name: str) -> bool:
        """Whether a known one works on real data alone; modules of ours are read for it, not imported."""
        return self._says_needs_data(name) if name in self._ours() else self.usable(name, True).NEEDS_DATA

    def _lack(self, name: str) -> DataError:
        free = ", ".join(other for other in self._ours() if not self._says_needs_data(other))
        return DataError(
            f"{self.what} '{name}' needs real data; pass data=… (--data FILE), or use one that needs none: {free}"
        )

    def _says_needs_data(self, name: str) -> bool:
        text = (self._folder / f"{name}.py").read_text(encoding="utf-8")
        assigned = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
        return any(ast.unparse(node) == "NEEDS_DATA = True" for node in assigned)

    def _ours(self) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules([str(self._folder)]) if not m.name.startswith("_"))

    @property
    def _folder(self) -> Path:
        """Where our modules lie; found without importing the package, which may be heavy."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.origin is not None
        return Path(spec.origin).parent

    def _foreign(self, point: EntryPoint) -> ModuleType:
        offered = f"{self.what} '{point.name}' of {_owner(point)} ({point.value})"
        try:
            module = point.load()
        except Exception as e:  # whatever somebody else's module does when it is imported
            reason = f"{type(e).__name__}: {first_line(e)}"
            raise DngeError(f"{offered} can't be imported ({reason}); repair or uninstall it") from e
        missing = [name for name in self.offers if not hasattr(module, name)]
        if missing or not isinstance(module, ModuleType):
            lack = f"lacks {', '.join(missing)}" if missing else f"is a {type(module).__name__} and no module"
            raise DngeError(f"{offered} {lack}; repair or uninstall it")
        return module


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
