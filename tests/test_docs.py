"""What the README and the site say: commands parse, code runs as far as it can, trees and rules are the real ones."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from models import graph_of, make
from test_layers import LINE

from dnge_compress.cli.grammar import parser
from dnge_compress.cli.help_texts import EXAMPLES
from dnge_compress.recipes.library import validate
from dnge_compress.recipes.schema import Calibration
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.calibration import synthesize

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """Page and text of every block of code in a language."""
    return [
        (page.relative_to(ROOT).as_posix(), text)
        for page in PAGES
        for found, text in BLOCK.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def commands() -> list[tuple[str, str]]:
    """Every `dnge …` that a page shows, in blocks of shell and in running text."""
    shown = [(page, line) for page, text in blocks("sh") for line in text.splitlines()]
    texts = [(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")) for page in PAGES]
    shown += [(name, found) for name, text in texts for found in re.findall(r"`(dnge [^`…]+)`", text)]
    parts = [
        (page, part.strip())
        for page, line in shown
        for part in line.partition("  #")[0].partition(" > ")[0].split("&&")
    ]
    return sorted({(page, part) for page, part in parts if part.startswith("dnge ")})


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_that_is_shown_parses(page: str, command: str) -> None:
    words = shlex.split(command.replace("\\\n", " "))[1:]
    if "--help" not in words and not (len(words) == 1 and "-" not in words[0]):  # a bare name is only spoken of
        assert parser().parse_args(words).function


def test_names_that_commands_write_to_hold_one_kind_of_thing_so_that_all_work_in_one_folder() -> None:
    recipes = [ROOT / "recipes" / "README.md", *sorted((ROOT / "recipes").rglob("*.yaml"))]
    lines = [line.lstrip("# ") for page in recipes for line in page.read_text(encoding="utf-8").splitlines()]
    shown = [line.partition("  #")[0] for line in lines if line.startswith("dnge ") and not line.endswith("\\")]
    shown += [command for _, command in commands()] + list(EXAMPLES.values())
    written: dict[str, set[str]] = {}
    for command in shown:
        words = shlex.split(command.partition(" > ")[0].replace("\\\n", " "))[1:]
        if "--help" in words or len(words) < 3:
            continue
        options = vars(parser().parse_args(words))
        function = options["function"]
        models = dict.fromkeys(("apply", "compress", "vocabulary"), "model")
        kind = {**models, "cp": f"copy of {options.get('name')}"}.get(function, function)
        for word in options.get("overrides", []):
            if word.startswith("output_dir="):
                written.setdefault(word.partition("=")[2], set()).add(kind)
        target = options.get("output") or (options["target"] if function == "cp" else None)
        if target:
            written.setdefault(str(target), set()).add(kind)
    assert {"plan.json", "lora.json", "mine.yaml", "OUT"} <= written.keys()
    assert {name: kinds for name, kinds in written.items() if len(kinds) > 1} == {}


@pytest.mark.parametrize("text", [text for _, text in blocks("python")])
def test_every_import_that_is_shown_works(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dnge_compress"):
            for alias in node.names:
                if not hasattr(importlib.import_module(str(node.module)), alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")  # a module, or an error that names it


def test_every_recipe_that_is_shown_is_sound() -> None:
    shown = [text for page, text in blocks("yaml")]
    assert shown
    for text in shown:
        validate(yaml.safe_load(text))


def test_the_scorer_that_is_shown_scores() -> None:
    text = next(text for page, text in blocks("python") if "def score(context" in text)
    module = ModuleType("largest")
    exec(compile(text, "docs/how-to/extend.md", "exec"), module.__dict__)
    model = make("llama")
    batches = tuple(synthesize(model, Calibration(tokens=128, length=16)))
    context = ScoringContext(graph=graph_of("llama", model), model=model, data=batches)
    found = module.score(context)
    assert set(found.units) == {s.name for s in context.graph.of_kind("neuron", "head", "channel", "layer")}


def test_the_readme_draws_the_real_tree_and_contributing_the_real_line() -> None:
    readme, contributing = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    tree = re.search(r"```\ndnge_compress/ .*?```", readme, re.DOTALL)
    assert tree is not None and tree[0] in contributing
    drawn = set(re.findall(r"[├└]── ([\w.]+)", tree[0]))
    package = ROOT / "dnge_compress"
    assert drawn == {p.name for p in package.iterdir() if p.is_dir() and p.name[0] != "_"} | {"api.py"}
    shown = re.search(r"core → [\w → ]+", contributing)
    assert shown is not None and tuple(shown[0].strip().split(" → ")) == LINE[:-1]


def test_every_page_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in listed
