"""What other packages offer through entry points: found like our own, and refused in one line where it doesn't fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType

import pytest

from dnge_compress.core import plugins
from dnge_compress.core.errors import DngeError
from dnge_compress.core.plugins import Registry
from dnge_compress.graph import families
from dnge_compress.graph.families import FAMILIES
from dnge_compress.recipes.methods import PLACERS, SCORERS

REGISTRIES = [SCORERS, PLACERS, FAMILIES]
Offer = Callable[..., None]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Let `module` be what the entry points called `names` offer; None is a module that can't be imported."""

    def offered(registry: Registry, module: ModuleType | None, *names: str) -> None:
        monkeypatch.setitem(sys.modules, "theirs", module)
        points = EntryPoints(EntryPoint(name, "theirs", registry.group) for name in names)
        monkeypatch.setattr(plugins, "entry_points", lambda group: points.select(group=group))

    return offered


def module_with(registry: Registry, **names: object) -> ModuleType:
    module = ModuleType("theirs")
    module.__dict__.update(dict.fromkeys(registry.offers, ()) | names)
    return module


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.what)
def test_a_sound_entry_point_is_found_by_its_name(registry: Registry, offer: Offer) -> None:
    module = module_with(registry)
    offer(registry, module, "novel")
    assert "novel" in registry.names() and registry.load("novel") is module


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.what)
def test_a_module_that_cannot_be_imported_is_named(registry: Registry, offer: Offer) -> None:
    offer(registry, None, "novel")
    with pytest.raises(DngeError, match=rf"{registry.what} 'novel' of theirs \(theirs\) can't be imported"):
        registry.load("novel")


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.what)
def test_a_module_that_lacks_a_name_is_refused(registry: Registry, offer: Offer) -> None:
    offer(registry, ModuleType("theirs"), "novel")
    with pytest.raises(DngeError, match=f"lacks {', '.join(registry.offers)}"):
        registry.load("novel")


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.what)
def test_a_name_that_two_packages_offer_is_refused(registry: Registry, offer: Offer) -> None:
    for names in ((registry.names()[0],), ("novel", "novel")):
        offer(registry, module_with(registry), *names)
        with pytest.raises(DngeError, match=f"theirs offers a {registry.what} '{names[-1]}'"):
            registry.names()


def test_a_family_that_reads_a_model_type_of_ours_is_refused(offer: Offer) -> None:
    offer(FAMILIES, module_with(FAMILIES, MODEL_TYPES=("llama",)), "novel")
    with pytest.raises(DngeError, match="both read model type 'llama'"):
        families.model_types()
