"""`dnge completion`: a script that lets a shell complete commands, options, recipes and files."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator

from dnge_compress.cli.grammar import parser
from dnge_compress.cli.output import print_json
from dnge_compress.core.errors import DngeError
from dnge_compress.recipes.library import names

FOLDERS = ("MODEL", "OTHER", "OUT", "SCORES", "FOLDER", "DIR")  # metavars
FILES = ("FILE", "PLAN.json", "FILE.yaml", "FILE.safetensors", "CURVE.html", "COMPARED.html")


def completion(options: Namespace) -> None:
    """`dnge completion SHELL`"""
    try:
        import shtab  # an extra
    except ImportError as e:
        raise DngeError("shell completion needs shtab: pip install 'dnge-compress[completion]'") from e
    root = parser()
    recipes = " ".join(names())
    for action in actions(root):
        if action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # shtab's way
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "RECIPE":
            action.complete = {"bash": "_dnge_recipes", "zsh": "_dnge_recipes"}  # type: ignore[attr-defined]
    own = {
        "bash": f"compgen -W '{recipes}' -- $1; compgen -f -- $1",
        "zsh": f"_alternative 'recipes:recipe:({recipes})' 'files:file:_files'",
    }
    script = shtab.complete(root, options.shell, preamble=f"_dnge_recipes() {{ {own[options.shell]}; }}")
    if options.json:
        print_json({"script": script})
    else:
        print(script)


def actions(of: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of a grammar and of the commands in it."""
    for action in of._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
