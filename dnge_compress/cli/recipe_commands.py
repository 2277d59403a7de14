"""`dnge recipes`: list, show, copy and check recipes. Nothing here needs torch."""

from __future__ import annotations

import json
from argparse import Namespace

from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.terminal import show as draw
from dnge_compress.recipes import library


def ls(options: Namespace) -> None:
    """`dnge recipes ls`"""
    listed = [library.load(name) for name in library.names()]
    if options.json:
        print(json.dumps([recipe.model_dump() for recipe in listed], indent=1))
        return
    rows = tuple((Cell(text=recipe.name), Cell(text=recipe.about, style="quiet")) for recipe in listed)
    draw(Table(columns=(Column(title="recipe", kind="text"), Column(kind="text", is_long=True)), rows=rows))


def show(options: Namespace) -> None:
    """`dnge recipes show RECIPE`"""
    text = library.text(options.name)
    print(library.load(options.name).model_dump_json(indent=1) if options.json else text.rstrip("\n"))


def cp(options: Namespace) -> None:
    """`dnge recipes cp RECIPE FILE.yaml`"""
    path = library.copy(options.name, options.target, force=options.force)
    if options.json:
        print(json.dumps({"file": str(path)}, indent=1))


def validate(options: Namespace) -> None:
    """`dnge recipes validate RECIPE [KEY=VALUE …]`"""
    found = library.load(options.name, library.assignments(options.overrides))
    print(found.model_dump_json(indent=1) if options.json else f"{options.name}: a sound {found.recipe} recipe")


def schema(options: Namespace) -> None:
    """`dnge recipes schema KIND`"""
    print(json.dumps(library.KINDS[options.kind].model_json_schema(), indent=1))
