"""The layer rule: a module imports from its own layer or from below, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dnge_compress

PACKAGE = Path(__file__).resolve().parents[1] / "dnge_compress"
LAYERS = (
    {"types", "errors", "lora_plan"},
    {
        "graph",
        "tracing",
        "trimming",
        "weights",
        "masking",
        "plugins",
        "sizes",
        "probe",
        "sensitivity",
        "signals",
        "sites",
        "elimination",
        "vocabulary",
        "writing",
        "painting",
        "shelf",
        "images",
        "workers",
        "parts",
        "files",
        "precision",
    },
    {"families", "encoder", "scorers", "placers"},
    {"recipes", "executors", "checkpoint", "report", "tables", "plan_tables", "lines"},
    {"api", "placing", "inr"},
    {"jobs"},
    {"session", "texts"},
    {"commands"},
    {"cli", "job_commands", "pretrain", "__main__"},
)
HOMES = {
    "torch_pruning": {"families/traced.py", "tracing.py", "executors/prune.py"},
    "torch_scatter": {"encoder/pooling.py"},
    "pydantic": {f"recipes/{name}.py" for name in ("schema", "lora_schema", "job_schema", "library", "explaining")},
    "rich": {
        f"{name}.py"
        for name in (
            "session",
            "job_commands",
            "tables",
            "plan_tables",
            "report",
            "jobs/report/job_report",
            "jobs/report/tables",
        )
    },
    "datasets": {"jobs/data/formats.py"},
    "accelerate": {"jobs/launching.py"},
    "peft": {
        "lora_plan.py",
        "placers/kappa.py",
        *(f"executors/{name}.py" for name in ("lora", "lora_check", "lora_export", "lora_model")),
    },
    "pyarrow": {"jobs/data/formats.py", "shelf.py"},
    "PIL": {"images.py"},
    "tokenizers": {"pretrain/corpora.py"},
}
# The one exception: users ask a plan for its preview, so PrunePlan.preview hands on to the api's verb when called.
UPWARD = {"types.py": {"api"}, "lora_plan.py": {"executors"}}
# The package's own __init__ only forwards names, lazily; who imports a name from it imports that name's home.
FORWARDED = {name: home for home, names in dnge_compress._HOMES.items() for name in names}
FILES = sorted(f.relative_to(PACKAGE).as_posix() for f in PACKAGE.rglob("*.py") if f != PACKAGE / "__init__.py")


def part_of(file: str) -> str:
    """The module or subpackage right under `dnge_compress` that holds `file`."""
    return file.split("/")[0].removesuffix(".py")


def imports(file: str) -> set[str]:
    """Dotted names that `file` imports anywhere, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute (style.md, 16)"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_imported(file: str) -> set[str]:
    """The modules or subpackages of ours that `file` imports."""
    ours = {name.split(".")[1] for name in imports(file) if name.startswith("dnge_compress.")}
    ours = {FORWARDED.get(name, name).split(".")[0] for name in ours}
    return {part for part in ours if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()}


def layer_of(part: str) -> int:
    """The number of the layer of `part`, from below."""
    found = [i for i, layer in enumerate(LAYERS) if part in layer]
    assert found, f"'{part}' has no layer yet: give it one in {Path(__file__).name}"
    return found[0]


@pytest.mark.parametrize("file", FILES)
def test_nothing_imports_upwards(file: str) -> None:
    upward = {part for part in parts_imported(file) if layer_of(part) > layer_of(part_of(file))}
    assert upward == UPWARD.get(file, set()), f"{file} imports {sorted(upward)} from a higher layer"


def test_every_layer_names_modules_that_exist() -> None:
    assert set().union(*LAYERS) == {part_of(file) for file in FILES}


def test_nobody_imports_pretrain() -> None:
    assert [f for f in FILES if part_of(f) != "pretrain" and "pretrain" in parts_imported(f)] == []


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_heavy_package_is_imported_only_where_it_belongs(package: str) -> None:
    users = {file for file in FILES if any(name.split(".")[0] == package for name in imports(file))}
    assert users <= HOMES[package]
