"""Recipes: defaults, overrides, errors that say where, and that the library is found wherever the package is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from dnge_compress.core.errors import BudgetError, DngeError, RecipeError, UnknownNameError
from dnge_compress.recipes import library
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.keys import leaves, section_of
from dnge_compress.recipes.library import resolve, validate
from dnge_compress.recipes.lora_schema import LoraRecipe
from dnge_compress.recipes.schema import Prune, Recipe, RecipeSection

ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path, source: str) -> Path:
    """A recipe file."""
    path = folder / "mine.yaml"
    path.write_text(source, encoding="utf-8")
    return path


def error_of(recipe: Any, **overrides: Any) -> str:
    """The message of the error that resolving raises; always one line."""
    with pytest.raises(DngeError) as caught:
        resolve(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_shipped_recipe_resolves_and_bears_its_own_name() -> None:
    assert {"prune/default", "prune/neurons", "prune/heads", "prune/layers"} <= set(library.names())
    for name in library.names():
        recipe = library.load(name)
        assert recipe.name == name and recipe.about


@pytest.mark.parametrize("name", library.names())
def test_every_shipped_recipe_opens_with_its_command_and_cost(name: str) -> None:
    comment = "".join(line for line in library.text(name).splitlines(True) if line.startswith("#"))
    commands = {"prune": "dnge compress MODEL -o OUT", "lora": "dnge place MODEL", "jobs": f"dnge run {name} "}
    assert commands[name.split("/")[0]] in comment and "Cost:" in comment
    assert library.text(name).startswith("#")


def test_default_recipe_removes_a_fifth_of_the_parameters_from_all_kinds() -> None:
    prune = resolve("prune/default").prune
    assert (prune.ratio, prune.of) == (0.2, "parameters")
    assert set(prune.kinds) == {"neuron", "head", "channel", "layer"}


def test_single_kind_recipes_count_units() -> None:
    kinds = {name: resolve(f"prune/{name}").prune for name in ("neurons", "heads", "layers")}
    assert {prune.of for prune in kinds.values()} == {"units"}
    assert kinds["neurons"].kinds == ("neuron", "channel")
    assert kinds["heads"].kinds == ("head",) and kinds["layers"].kinds == ("layer",)


def test_leaf_names_are_unique_over_the_whole_recipe() -> None:
    def count(section: type[RecipeSection]) -> int:
        inner = (section_of(section, name) for name in section.model_fields)
        return sum(1 if found is None else count(found) for found in inner)

    # All but the word at the top that tells which kind of recipe it is.
    assert len(leaves(Recipe)) == count(Recipe) - 1
    assert all(len(places) == 1 for places in leaves(Recipe).values())


def test_the_page_lists_every_key_with_its_default() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    part = text.partition("## Keys of a prune recipe")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| `([a-z_.]+)` \| `?([^|`]*)`? \|", part, re.MULTILINE))
    assert set(table) == {".".join(path) for paths in leaves(Recipe).values() for path in paths}
    defaults = Recipe().model_dump()
    for key in ("calibration.tokens", "prune.ratio", "prune.min_keep", "repair.ridge", "repair.compensate"):
        section, leaf = key.split(".")
        assert table[key].strip() == str(defaults[section][leaf])


def test_the_page_names_every_key_of_placements_and_jobs() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("## Keys of a lora recipe")[2]
    named = set(re.findall(r"`([a-z_0-9.]+)`", text))
    for section in (LoraRecipe, Job):
        for paths in leaves(section).values():
            for path in paths:
                above = {".".join(path[:n]) for n in range(1, len(path) + 1)} | {path[-1]}
                assert named & above or path[0] in ("name", "about", "calibration", "train"), path


def test_recipes_are_frozen() -> None:
    recipe: Any = Recipe()
    with pytest.raises(ValidationError):
        recipe.scorer = "obs"
    with pytest.raises(ValidationError):
        recipe.prune.ratio = 0.5


def test_overrides_work_by_leaf_name_and_by_path() -> None:
    recipe = resolve("prune/default", {"ratio": 0.3, "scorer": "obs", "repair.compensate": "bias", "kinds": ["head"]})
    assert (recipe.prune.ratio, recipe.scorer, recipe.repair.compensate) == (0.3, "obs", "bias")
    assert recipe.prune.kinds == ("head",)
    assert resolve("prune/default").prune.ratio == 0.2


def test_an_override_of_none_leaves_the_recipes_value() -> None:
    assert resolve("prune/heads", {"ratio": None}).prune.ratio == 0.25


def test_names_separated_by_commas_make_a_list() -> None:
    assert resolve("prune/default", {"kinds": "neuron, head"}).prune.kinds == ("neuron", "head")


def test_a_recipe_object_is_taken_as_it_is() -> None:
    mine = Recipe(name="mine", prune=Prune(ratio=0.4))
    assert resolve(mine) is mine
    assert resolve(mine, {"seed": 3}).calibration.seed == 3 and mine.calibration.seed == 0


def test_a_file_is_a_recipe_named_after_it(tmp_path: Path) -> None:
    path = write(tmp_path, "prune: {ratio: 0.4}\n")
    for source in (path, str(path)):
        assert (resolve(source).prune.ratio, resolve(source).name) == (0.4, "mine")


def test_a_recipe_survives_the_way_through_a_plan() -> None:
    recipe = resolve("prune/heads", {"ratio": 0.5, "protected": ["*.layers.0.*"]})
    assert validate(recipe.model_dump(mode="json"), "plan.json") == recipe


@pytest.mark.parametrize("ratio", [1.3, 1, -0.1, float("nan"), float("inf")])
def test_a_ratio_out_of_range_is_a_budget_error(ratio: float) -> None:
    with pytest.raises(BudgetError, match=r"^ratio must be at least 0 and below 1, not "):
        resolve("prune/default", {"ratio": ratio})


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown recipe 'prune/defalt'; did you mean 'prune/default'"):
        resolve("prune/defalt")


def test_an_unknown_override_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'ratoi'; did you mean 'ratio'"):
        resolve("prune/default", {"ratoi": 0.3})
    assert "'prune.ratio'" in error_of("prune/default", **{"prune.ratoi": 0.3})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("about: x\nprune:\n  ratio: 0.2\n  round: 3\n", ":4: unknown key 'prune.round'; did you mean 'round_to'?"),
        ("about: x\nratio: 0.2\n", ":2: unknown key 'ratio'; it belongs under 'prune'"),
        ("prune: {scorer: obs}\n", ":1: unknown key 'prune.scorer'; it belongs at the top level"),
        (
            "prune:\n  allocation: globl\n",
            ":2: 'prune.allocation' should be 'auto', 'uniform' or 'global', not 'globl'; did",
        ),
        (
            "prune:\n  kinds: [neurn]\n",
            ":2: 'prune.kinds' should be 'neuron', 'head', 'channel', 'layer' or 'expert', not",
        ),
        ("prune:\n  kinds: []\n", ":2: 'prune.kinds' should have at least 1 item"),
        ("calibration:\n  tokens: 63\n", ":2: 'calibration.tokens' should be greater than or equal to 64, not 63"),
        ("calibration:\n  tokens: true\n", ":2: 'calibration.tokens' should be a number, not True"),
        ("calibration:\n  tokens: 64\n  length: 65\n", "tokens (64) should be at least length (65)"),
        ("repair:\n  ridge: 0\n", ":2: 'repair.ridge' should be greater than 0, not 0"),
        ("prune:\n  ratio: 2\n", ":2: ratio must be at least 0 and below 1, not 2"),
        ("prune: 3\n", ":1: 'prune' must hold keys (ratio, "),
        ("prune:\n", ":1: 'prune' is empty; write `prune: {}` for its defaults, or take it out"),
        ("prune:\n  ratio: 0.2\n  ratio: 0.3\n", ":3: key 'prune.ratio' stands twice"),
        ("prune: [\n", ":2: not valid YAML"),
        ("a: &a [*a]\n", "aliases (*name) are not allowed"),
        ("scorer: !!python/object/apply:os.getcwd []\n", ":1: not valid YAML: could not determine a constructor"),
        ("3: x\n", ":1: unknown key '3'"),
        ("- x\n", ": a recipe is a mapping of keys to values"),
        ("", ": a recipe is a mapping of keys to values"),
    ],
)
def test_a_bad_file_names_itself_the_line_and_the_key(tmp_path: Path, source: str, words: str) -> None:
    path = write(tmp_path, source)
    message = error_of(path)
    assert message.startswith(str(path)) and words in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "none.yaml")


def test_copying_a_recipe_keeps_its_comments_and_overwrites_only_if_told(tmp_path: Path) -> None:
    path = library.copy("prune/heads", tmp_path / "mine.yaml")
    assert path.read_text(encoding="utf-8") == library.text("prune/heads")
    with pytest.raises(RecipeError, match="exists"):
        library.copy("prune/layers", path)
    library.copy("prune/layers", path, force=True)
    assert path.read_text(encoding="utf-8") == library.text("prune/layers")
    assert library.copy("prune/heads", tmp_path) == tmp_path / "heads.yaml"


def test_the_checkout_reads_the_folder_beside_the_package() -> None:
    assert library.folder() == ROOT / "recipes"


def test_a_wheel_brings_the_recipes_along(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="builds a wheel")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("dnge_compress", "recipes"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", source)
    (source / "README.md").write_text("# dnge\n", encoding="utf-8")
    build = ["wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    wheel = next(tmp_path.glob("*.whl"))
    shutil.unpack_archive(wheel, site, "zip")
    shutil.rmtree(source)
    program = (
        "from dnge_compress.recipes import library as l;"
        "print(l.folder()); print(l.names()); print(l.resolve('prune/neurons').name)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
    )
    folder, found, name = run.stdout.splitlines()
    assert Path(folder) == site / "dnge_compress" / "_recipes"
    assert yaml.safe_load(found) == library.names() and name == "prune/neurons"
