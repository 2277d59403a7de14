"""The command line: quick help, one JSON document, exit codes, one line per error, nothing half written."""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make, outputs, tokens
from reliability_shells import completed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, SpeechT5HifiGan, SpeechT5HifiGanConfig

import dnge_compress
from dnge_compress.checkpoint.compression import REPORT, VOCABULARY
from dnge_compress.cli import completion as completing
from dnge_compress.cli.grammar import parser
from dnge_compress.cli.interruption import interruptible
from dnge_compress.cli.main import main
from dnge_compress.cli.output import print_json
from dnge_compress.cli.progress_bars import session
from dnge_compress.core.errors import BudgetError, DngeError, ExactnessError
from dnge_compress.core.launcher import ended_by_signals
from dnge_compress.core.progress_bars import loading_libraries
from dnge_compress.plans.vocabulary_plan import VocabularyPlan

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("--scorer", "obs", "--set", "tokens=256", "--set", "length=16")
NEURONS = ("--recipe", "prune/neurons", "--ratio", "0.3", *QUICK)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny Llama with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    model: Any = make("llama")
    model.save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(58))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the same model, compressed by the command line."""
    folder = str(tmp_path_factory.mktemp("models") / "small")
    assert main(["compress", llama, "-o", folder, *NEURONS]) == 0
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "dnge_compress", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one error line of a command that must fail."""
    capsys.readouterr()
    code = main(arguments)
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("dnge: error: ")]
    assert out == "" and len(errors) == 1 and "Traceback" not in err
    return code, errors[0]


def content(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


def test_help_answers_in_under_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "exit codes" in run("--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)  # other jobs don't count
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "program",
    [
        "import dnge_compress",
        "from dnge_compress.cli.main import main; main(['recipes', 'ls', '--json'])",
        "from dnge_compress.cli.main import main; main(['recipes', 'show', 'prune/default'])",
    ],
)
def test_what_needs_no_model_imports_no_torch(program: str) -> None:
    check = "import sys; assert not {'torch', 'transformers', 'torch_pruning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{program}; {check}"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_every_public_name_can_be_imported_and_is_listed_once_in_order() -> None:
    stub = ast.parse((ROOT / "dnge_compress" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = sorted(name.name for line in stub.body if isinstance(line, ast.ImportFrom) for name in line.names)
    assert dnge_compress.__all__ == imported == sorted(dnge_compress.__all__)
    for name in dnge_compress.__all__:
        assert getattr(dnge_compress, name) is not None
    with pytest.raises(AttributeError, match="No dnge_compress attribute nothing"):
        dnge_compress.nothing  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None and version("dnge-compress") == dnge_compress.__version__ == cited[1]


def commands(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands and verbs that do something."""
    below = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for command in action.choices.values():
            yield from commands(command)
    if not below:
        yield of


@pytest.mark.parametrize("command", [c.prog.split()[1:] for c in commands(parser())], ids=" ".join)
def test_every_command_has_help_and_can_answer_in_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0 and " ".join(["dnge", *command]) in shown and "--json" in shown


def test_recipes_are_listed_shown_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls"]) == 0
    assert "prune/neurons" in capsys.readouterr().out
    assert main(["recipes", "ls", "--json"]) == 0
    assert "prune/neurons" in [r["name"] for r in json.loads(capsys.readouterr().out)]
    assert main(["recipes", "show", "prune/heads"]) == 0
    shown = capsys.readouterr().out
    assert main(["recipes", "cp", "prune/heads", str(tmp_path / "mine.yaml")]) == 0
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == shown
    assert failure(capsys, "recipes", "cp", "prune/heads", str(tmp_path / "mine.yaml"))[0] == 2
    assert main(["recipes", "cp", "prune/heads", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(tmp_path / "heads.yaml")}


def test_compress_leaves_a_folder_that_transformers_loads(llama: str, small: str) -> None:
    base, loaded = (AutoModelForCausalLM.from_pretrained(folder) for folder in (llama, small))
    assert loaded.config.intermediate_size == 28 < base.config.intermediate_size == 40
    assert outputs(loaded, tokens()).isfinite().all()
    assert (Path(small) / "dnge_plan.json").is_file() and (Path(small) / "tokenizer.json").is_file()


def test_json_is_exactly_one_document_on_stdout(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands: dict[str, list[str]] = {
        "units": ["score", llama, *QUICK],
        "cuts": ["plan", llama, "-o", str(tmp_path / "plan.json"), *NEURONS],
        "rows": ["compress", llama, "-o", str(tmp_path / "a"), *NEURONS],
        "totals": ["apply", str(tmp_path / "plan.json"), llama, "-o", str(tmp_path / "b")],
        "timings": ["report", str(tmp_path / "a")],
    }
    for key, command in commands.items():
        assert main([*command, "--json"]) == 0
        assert key in json.loads(capsys.readouterr().out)


def test_tables_go_to_stdout_and_progress_to_stderr(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", llama, *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "ffn.0" in out and "dnge: open" in err and "dnge:" not in out


def test_a_plan_without_a_file_goes_to_stdout(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", llama, *NEURONS]) == 0
    assert json.loads(capsys.readouterr().out)["cuts"]["ffn.0"]


def test_plan_and_apply_make_what_compress_makes(llama: str, small: str, tmp_path: Path) -> None:
    plan, out = str(tmp_path / "plan.json"), str(tmp_path / "out")
    assert main(["plan", llama, "-o", plan, *NEURONS]) == 0
    assert main(["apply", plan, llama, "-o", out]) == 0
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, small))
    torch.testing.assert_close(outputs(ours, tokens()), outputs(theirs, tokens()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("told", [False, True])
def test_a_large_compress_that_is_stopped_goes_on_from_its_parts(
    told: bool,
    llama: str,
    small: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    work = tmp_path / "parts" if told else tmp_path / "out.unfinished"
    command = ["compress", llama, "-o", str(out), *NEURONS, *(["--work", str(work)] if told else [])]
    monkeypatch.setattr("dnge_compress.cli.commands.LARGE", 1 << 40 if told else 0)
    with monkeypatch.context() as context:
        context.setattr("dnge_compress.api.save", lambda *args, **kwargs: (_ for _ in ()).throw(DngeError("full disk")))
        assert main(command) != 0
    assert f"finished parts stay in '{work}'" in capsys.readouterr().err
    assert (work / "signals.part.safetensors").is_file()
    monkeypatch.setattr("dnge_compress.signals.side_by_side.best_fit", lambda *args: pytest.fail("fitted again"))
    assert main(command) == 0
    assert not work.exists()
    assert (out / "model.safetensors").read_bytes() == (Path(small) / "model.safetensors").read_bytes()


def test_where_no_part_is_finished_none_is_said_to_stay(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "unfinished.json").write_text('{"mine": 1}')
    assert main(["compress", llama, "-o", str(tmp_path / "out"), *NEURONS, "--work", str(work)]) == 2
    told = capsys.readouterr().err
    assert "holds something else than parts of a work" in told and "parts stay" not in told


def test_the_base_stays_as_it_was(llama: str, tmp_path: Path) -> None:
    before = content(llama)
    assert main(["compress", llama, "-o", str(tmp_path / "out"), *NEURONS]) == 0
    assert content(llama) == before


def test_report_draws_what_compress_drew(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["compress", llama, "-o", out, *NEURONS]) == 0
    drawn = capsys.readouterr().out
    assert "28 / 40" in drawn and "without embeddings" in drawn
    assert main(["report", out]) == 0
    assert capsys.readouterr().out == drawn


def test_flags_and_settings_reach_the_recipe(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--ratio",
        "0.5",
        "--scorer",
        "magnitude",
        "--seed",
        "7",
        "--set",
        "compensate=none",
        "--set",
        "kinds=[neuron]",
    ]
    assert main(["plan", llama, *flags, "--set", "prune.of=units"]) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert (recipe["scorer"], recipe["calibration"]["seed"], recipe["repair"]["compensate"]) == ("magnitude", 7, "none")
    assert recipe["prune"]["ratio"] == 0.5 and list(recipe["prune"]["kinds"]) == ["neuron"]


def test_texts_take_the_place_of_synthetic_ones(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(f"w{i} w{i + 1} w{i + 2} " * (1 + i % 4) for i in range(30)) + "\n\n", encoding="utf-8")
    scores = []
    for extra in ([], ["--data", str(data)]):
        assert main(["score", llama, *QUICK, "--json", *extra]) == 0
        scores.append(json.loads(capsys.readouterr().out)["units"]["ffn.0"])
    assert scores[0] != scores[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--recipe", "prune/defalt"], 2, "unknown recipe 'prune/defalt'; did you mean 'prune/default'"),
        (["--recipe", "none.yaml"], 2, "recipe file 'none.yaml' does not exist"),
        (["--set", "ratoi=0.3"], 2, "unknown recipe key 'ratoi'; did you mean 'ratio'"),
        (["--set", "ratio"], 2, "write KEY=VALUE"),
        (["--set", "kinds=[neuron"], 2, "can't be read"),
        (["--set", "allocation=globl"], 2, "did you mean 'global'"),
        (["--scorer", "magnitud"], 2, "did you mean 'magnitude'"),
        (["--ratio", "1.3"], 3, "ratio must be at least 0 and below 1, not 1.3"),
        (["--ratio", "-0.1"], 3, "ratio must be at least 0 and below 1, not -0.1"),
        (["--ratio", "0.95", "--set", "min_keep=0.5"], 3, "lower the ratio or min_keep"),
        (["--device", "cuda:99"], 2, "device 'cuda:99' can't be used"),
        (["--device", "gpu"], 2, "device 'gpu' can't be used"),
        (["--data", "none.txt"], 2, "none.txt' doesn't exist"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    out = tmp_path / "out"
    found, message = failure(capsys, "compress", llama, "-o", str(out), *QUICK, *arguments)
    assert words in message and found == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["score", "plan"])
def test_a_missing_model_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = failure(capsys, command, str(tmp_path / "none"), *QUICK)
    assert code == 2 and "none" in message


def test_a_model_without_weights_is_refused(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(content(llama)["config.json"])
    assert failure(capsys, "compress", str(tmp_path / "model"), "-o", str(tmp_path / "out"))[0] == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_ours_is_kept_and_forced_only_where_nothing_is_lost(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine", encoding="utf-8")
    for force in ([], ["--force"]):
        code, message = failure(capsys, "compress", llama, "-o", str(out), *NEURONS, *force)
        assert code == 2 and "thesis.txt" in message and content(out) == {"thesis.txt": b"mine"}
    (out / "thesis.txt").rename(out / "config.json")
    code, message = failure(capsys, "compress", llama, "-o", str(out), *NEURONS)
    assert code == 2 and "--force" in message and content(out) == {"config.json": b"mine"}
    assert main(["compress", llama, "-o", str(out), *NEURONS, "--force"]) == 0
    assert (out / "dnge_plan.json").is_file()


def test_a_file_that_is_no_plan_is_kept_unless_forced(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{}", encoding="utf-8")
    assert failure(capsys, "plan", llama, "-o", str(path), *NEURONS)[0] == 2
    assert path.read_text(encoding="utf-8") == "{}"
    for extra in (["--force"], []):
        assert main(["plan", llama, "-o", str(path), *NEURONS, *extra]) == 0
    assert [f.name for f in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_for_another_model_is_refused(
    llama: str, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Path(small) / "dnge_plan.json"
    code, message = failure(capsys, "apply", str(plan), small, "-o", str(tmp_path / "out"))
    assert code == 2 and "plan" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"dnge_plan": 1}', '{"dnge_plan": 1, "recipe": 3}'])
def test_a_broken_plan_is_refused(text: str, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    code, message = failure(capsys, "apply", str(path), llama, "-o", str(tmp_path / "out"))
    assert code == 2 and f"'{path}'" in message and "make a plan with `dnge plan`" in message
    assert failure(capsys, "apply", str(tmp_path / "none.json"), llama, "-o", str(tmp_path / "out"))[0] == 2


def test_a_report_is_printed_as_a_page(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    assert main(["report", small, "--html"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!doctype html>") and "<h2>Sensitivity</h2>" in page and "Compression report" in page
    assert page.count("<title>layer 2, ffn.2: ") == 1 and "→" in page
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["report", small, "--html"]) == 0
    code, message = failure(capsys, "report", small, "--html", "--json")
    assert code == 2 and "--json: not allowed with argument --html" in message


def test_a_page_of_two_reports_holds_the_head_of_both(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = VocabularyPlan(keep=(0, 2), tokens=("a", "c"), rows=8, base="x", params_before=1000, params_per_token=50)
    shutil.copy(Path(small) / REPORT, tmp_path)
    (tmp_path / VOCABULARY).write_text(tokens.to_json(), encoding="utf-8")
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--html"]) == 0
    page = capsys.readouterr().out
    assert page.count("<h1") == 1 and "<h2>8 → 2 tokens</h2>" in page
    assert "1.00 k → 700 parameters · 30.0 % saved" in page


def test_a_folder_without_a_report_is_refused(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = failure(capsys, "report", llama)
    assert code == 2 and "wasn't saved by dnge" in message


def test_a_report_of_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = failure(capsys, "report", str(tmp_path / "none"))
    assert code == 2 and "is not there; name a folder" in message
    (tmp_path / "file").write_text("x")
    code, message = failure(capsys, "report", str(tmp_path / "file"))
    assert code == 2 and "is a file; name a folder" in message


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({"dnge_report.json": "{}"}, "dnge_report.json"),
        ({"dnge_report.json": "{"}, "dnge_report.json"),
        ({"job.json": "{}", "report.json": "{}"}, "report.json"),
        ({"job.json": "{}", "report.json": '{"dnge_job_report": 1}'}, "report.json"),
    ],
)
def test_a_broken_report_names_its_file(
    texts: dict[str, str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, message = failure(capsys, "report", str(tmp_path))
    assert code == 2 and f"'{tmp_path / named}'" in message


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("boom\nbang"), 1), (BudgetError("no"), 3), (ExactnessError("no"), 4)]
)
def test_errors_become_documented_exit_codes(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("dnge_compress.cli.commands.score", fail)
    monkeypatch.delenv("DNGE_DEBUG", raising=False)
    assert failure(capsys, "score", "x")[0] == code
    assert f"\n  {code}  " in str(parser().epilog)


def test_a_traceback_is_shown_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNGE_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["recipes", "show", "prune/defalt"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress"], "arguments are required: MODEL, -o/--output; see `dnge compress --help`"),
        (["compress", "m", "-o", "out", "--rat", "0.2"], "unknown option --rat; did you mean '--ratio'"),
        (["run", "jobs/prune-recover", "--model", "m"], "keys of the recipe stand without dashes (model_name_or_path="),
        (["nothing"], "invalid choice: 'nothing'; known: "),
        (["compres", "m", "-o", "out"], "invalid choice: 'compres'; did you mean 'compress'"),
        (
            ["compress", "m", "-o", "out", "--dtype", "float8"],
            "--dtype: invalid choice: 'float8'; did you mean 'float32'",
        ),
        (["compress", "x", "-o", "y", "--ratio", "abc"], "argument --ratio: invalid float value: 'abc'"),
        (["recipes", "cp", "prune/default"], "see `dnge recipes cp --help`"),
        (["pretrain", "--runs", "0"], "argument --runs: 0 is not a positive number"),
        (["inr", "mnist"], "arguments are required: -o/--output"),
    ],
)
def test_wrong_usage_is_one_line_as_every_error(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = failure(capsys, *arguments)
    assert code == 2 and words in message


@pytest.mark.parametrize(("words", "shown"), [([], "dnge compress "), (["recipes"], "dnge recipes cp prune/default")])
def test_words_that_name_no_command_yet_show_the_help(
    words: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    found = capsys.readouterr().out
    assert f"usage: {' '.join(['dnge', *words])}" in found and shown in found


@pytest.mark.parametrize("command", [c.prog.split()[1:] for c in commands(parser())], ids=" ".join)
def test_every_help_ends_with_an_example_that_parses(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    example = capsys.readouterr().out.rstrip().splitlines()[-1].strip()
    words = shlex.split(example.partition(" > ")[0])
    assert words[: len(command) + 1] == ["dnge", *command] and len(example) < 80
    assert parser().parse_args(words[1:]).function == command[-1]


def test_the_environment_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch"] == version("torch") and found["dnge-compress"] == dnge_compress.__version__
    assert {"python", "system", "accelerators", "encoding"} <= found.keys()
    assert main(["env"]) == 0
    assert version("transformers") in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_recipes(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "compress" in script and "--ratio" in script and "prune/neurons" in script


def test_every_path_is_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    root = parser()
    monkeypatch.setattr(completing, "parser", lambda: root)
    assert main(["completion", "bash"]) == 0
    told = re.compile(r"\b(folder|file|path|rows|texts)\b|[A-Z]\.(json|yaml|html|safetensors)$")
    for action in completing.actions(root):
        about = f"{action.help} {action.metavar}"
        if action.nargs != 0 and (action.type is Path or told.search(about)):
            assert hasattr(action, "complete"), (action.option_strings, action.dest)


def test_completion_without_its_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, message = failure(capsys, "completion", "bash")
    assert code == 2 and "pip install 'dnge-compress[completion]'" in message


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(), ended_by_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("is_swallowed", [False, True])
def test_a_signal_ends_a_command_with_its_code_and_a_line(
    is_swallowed: bool,
    number: int,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt as e:
            raise ModuleNotFoundError("could not import") if is_swallowed else e from None

    before = [signal.getsignal(n) for n, _, _ in SIGNALS]
    monkeypatch.setattr("dnge_compress.cli.commands.score", work)
    assert main(["score", "x"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"dnge: {word}"
    assert [signal.getsignal(n) for n, _, _ in SIGNALS] == before
    assert f"\n  {code}  " in str(parser().epilog)


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_while_libraries_are_loaded_ends_at_once(number: int, code: int, word: str) -> None:
    command = [sys.executable, "-m", "dnge_compress", "score", "x"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        process.send_signal(number)
        lines += process.stderr.readlines()
    assert lines == ["dnge: load libraries\n", f"dnge: {word}\n"] and process.returncode == code


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("moment", ["before anything is loaded", "after the work"])
def test_a_signal_before_and_after_the_work_ends_with_its_code(moment: str, number: int, code: int, word: str) -> None:
    ends = {"before anything is loaded": "", "after the work": "return 0"}[moment]
    program = (
        "import os, sys, time, types\n"
        "def main():\n"
        f"    {ends or f'os.kill(os.getpid(), {int(number)}); time.sleep(5)'}\n"
        "sys.modules['dnge_compress.cli.main'] = types.SimpleNamespace(main=main)\n"
        "from dnge_compress.cli.start import start\n"
        f"start(); os.kill(os.getpid(), {int(number)}); time.sleep(5)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (code, f"dnge: {word}\n")


def test_nothing_that_takes_milliseconds_is_loaded_before_signals_are_taken() -> None:
    slow = {
        "lazy_loader",
        "ast",
        "contextlib",
        "pathlib",
        "threading",
        "typing",
        "warnings",
        "argparse",
        "importlib.util",
    }
    program = f"import sys; import dnge_compress.cli.start; assert not {slow} & set(sys.modules)"
    subprocess.run([sys.executable, "-S", "-c", program], check=True, cwd=ROOT)


def test_a_signal_while_libraries_are_loaded_leaves_no_lock(llama: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dnge_compress", "compress", llama, "-o", str(tmp_path / "a" / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None and process.stderr.readline() == "dnge: load libraries\n"
        assert [p.name for p in (tmp_path / "a").iterdir()] == [".out.dnge-lock"]
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_real_shell_completes(shell: str, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "llama").mkdir()
    (tmp_path / "mine.yaml").touch()
    wanted = {
        "dnge compr": "dnge compress",
        "dnge compress lla": "dnge compress llama",
        "dnge run mi": "dnge run mine.yaml",
        "dnge run jobs/prune-r": "dnge run jobs/prune-recover",
    }
    found = completed(shell, tmp_path, tuple(wanted))
    assert {line: text.rstrip().rstrip("/") for line, text in found.items()} == wanted


def test_a_name_that_the_encoding_has_no_letters_for_is_refused_before_the_work(tmp_path: Path) -> None:
    settings = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "dnge_compress", "recipes", "cp", "prune/default", str(tmp_path / "mü.yaml")]
    done = {}
    for mode in ("0", "1"):
        done[mode] = subprocess.run(command, capture_output=True, cwd=ROOT, env={**settings, "PYTHONUTF8": mode})
    assert done["0"].returncode == 2 and done["0"].stderr.count(b"\n") == 1
    assert b"can't be spelled in ascii; set PYTHONUTF8=1" in done["0"].stderr
    assert done["1"].returncode == 0 and [f.name for f in tmp_path.iterdir()] == ["mü.yaml"]


def test_json_is_escaped_where_the_encoding_has_no_letters_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_json({"plan": "ü → 𝄞"})
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == {"plan": "ü → 𝄞"}


def test_a_saved_model_comes_with_where_it_is_how_to_load_it_and_what_is_next(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a model"
    assert main(["compress", llama, "-o", str(out), *NEURONS]) == 0
    saved, load, after = capsys.readouterr().err.splitlines()[-3:]
    assert saved == f"saved to   {out}"
    assert load == f'load with  transformers.LlamaForCausalLM.from_pretrained("{out}")'
    assert shlex.split(after.partition("  #")[0])[1:] == ["dnge", "place", str(out)]
    uneven = ("--set", "uneven=true", "--set", "allocation=global", "--set", "of=parameters", "--ratio", "0.2")
    assert main(["compress", llama, "-o", str(out), *NEURONS, *uneven]) == 0
    assert f'load with  dnge_compress.load("{out}")' in capsys.readouterr().err
    assert dnge_compress.load(out).dnge.plan.uneven


def test_models_that_nobody_can_read_get_a_way_out_of_this_command_line(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((Path(llama) / "config.json").read_text(encoding="utf-8"))
    for change in ({"model_type": "mixtrall"}, {"architectures": ["MixtrallForCausalLM"]}):
        folder = tmp_path / next(iter(change))
        shutil.copytree(llama, folder)
        (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        code, message = failure(capsys, "compress", str(folder), "-o", str(tmp_path / "out"))
        assert code == 2 and "mixtrall" in message.lower() and "pip install -U transformers" in message
        assert "did you mean" not in message
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(upsample_initial_channel=32, model_in_dim=16))
    vocoder.save_pretrained(tmp_path / "vocoder")
    code, message = failure(capsys, "compress", str(tmp_path / "vocoder"), "-o", str(tmp_path / "out"))
    assert code == 2 and "only Python can trace it: compress(model, example_inputs=…)" in message


@pytest.mark.parametrize("command", [("zoo", "-o", "OUT"), ("pretrain", "--zoo", "OUT"), ("inr", "mnist", "-o", "OUT")])
def test_programs_that_train_name_the_missing_data(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    code, message = failure(capsys, *arguments, "--data-folder", str(tmp_path / "none"))
    assert code == 2 and "no data folder" in message and list(tmp_path.iterdir()) == []


def test_errors_reach_the_shell_as_exit_codes() -> None:
    done = run("recipes", "show", "prune/defalt")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("dnge: error: unknown recipe 'prune/defalt'") and done.stderr.count("\n") == 1


def test_what_libraries_and_trackers_print_goes_to_stderr_while_a_command_works(capsys: Any) -> None:
    for working in (session, loading_libraries):
        with working():
            print("[INFO] Running in WANDB offline mode")
        out, err = capsys.readouterr()
        assert out == "" and "[INFO]" in err
