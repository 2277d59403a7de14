"""The layer rule: a folder imports only from those before it in the line, nothing imports in a circle, and heavy
packages stay where they belong."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dnge_compress"
LINE = (
    "core",
    "recipes",
    "graph",
    "signals",
    "data",
    "encoder",
    "scorers",
    "plans",
    "surgery",
    "report",
    "checkpoint",
    "vocabulary",
    "lora",
    "tasks",
    "api",
    "zoo",
    "inr",
    "jobs",
    "cli",
    "__main__",
)
HOMES = {
    "torch_pruning": {"graph/tracing/groups.py"},
    "torch_scatter": {"encoder/pooling.py"},
    "pydantic": {
        *(f"recipes/{name}.py" for name in ("schema", "lora_schema", "data_schema", "job_schema")),
        *(f"recipes/{name}.py" for name in ("library", "explaining")),
    },
    "datasets": {"data/formats.py"},
    "accelerate": {"jobs/launching.py", "surgery/placement.py"},
    "peft": {
        "lora/placers/kappa.py",
        *(f"lora/{name}.py" for name in ("peft_config", "verify", "export", "attach", "plan")),
    },
    "pyarrow": {"data/formats.py", "zoo/data_root.py"},
    "PIL": {"zoo/images.py"},
    "scipy": {"zoo/pretrain/targets.py"},
    "jinja2": {"report/page.py", "checkpoint/card.py", "data/chat.py"},
    "rich": {"core/terminal.py", "core/progress_bars.py", "cli/job_commands.py"},
    "huggingface_hub": {
        f"{home}.py"
        for home in ("encoder/hub", "encoder/hub_encoder", "checkpoint/model_files", "checkpoint/aux_files")
    },
    "tokenizers": {"data/about_tokens.py", "zoo/corpora.py"},
    "regex": {"vocabulary/coverage.py"},
    "shtab": {"cli/completion.py"},
    "ray": {"zoo/ray_workers.py"},
}
FILES = sorted(f.relative_to(PACKAGE).as_posix() for f in PACKAGE.rglob("*.py"))
MODULES = {("dnge_compress/" + f).removesuffix(".py").removesuffix("/__init__").replace("/", "."): f for f in FILES}


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


def ours(file: str) -> set[str]:
    """The files of the package that `file` imports a name or a module from. The package's own __init__ forwards names
    lazily, so nothing in it counts."""
    if file == "__init__.py":
        return set()
    found = set()
    for name in imports(file):
        home = name if name in MODULES else name.rpartition(".")[0]
        if home in MODULES and MODULES[home] not in (file, "__init__.py"):
            found.add(MODULES[home])
    return found


def folder_of(file: str) -> str:
    """The folder or module right under the package that holds `file`."""
    return file.split("/")[0].removesuffix(".py")


def test_the_line_names_every_folder_and_nothing_else() -> None:
    assert set(LINE) == {folder_of(file) for file in FILES} - {"__init__"}


@pytest.mark.parametrize("file", [f for f in FILES if f != "__init__.py"])
def test_nothing_imports_upwards(file: str) -> None:
    place = LINE.index(folder_of(file))
    assert [other for other in ours(file) if LINE.index(folder_of(other)) > place] == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter({file: ours(file) for file in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", sorted({file.rpartition("/")[0] for file in FILES}))
def test_what_lies_in_a_folder_is_in_no_circle(folder: str) -> None:
    """Files and folders side by side, each folder as one: the line as a whole, and every room of it."""
    inside = f"{folder}/" if folder else ""
    beside: dict[str, set[str]] = {}
    for file in FILES:
        if file.startswith(inside):
            own = file.removeprefix(inside).split("/")[0]
            others = {o.removeprefix(inside).split("/")[0] for o in ours(file) if o.startswith(inside)}
            beside.setdefault(own, set()).update(others - {own})
    try:
        TopologicalSorter(beside).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_heavy_package_is_imported_only_where_it_belongs(package: str) -> None:
    users = {file for file in FILES if any(name.split(".")[0] == package for name in imports(file))}
    assert users == HOMES[package]
