"""What goes wrong around a command: kills, races, noise, harm. And that every part of the benchmark can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reliability_disks
import reliability_fuzz
import reliability_hostile
import reliability_inputs
import reliability_kills
import reliability_races
import reliability_repeats
import torch
from models import make
from reliability_setting import Row, Setting, build, forked
from reliability_targets import Kind, Target

from dnge_compress import load, open_model, place_lora
from dnge_compress.checkpoint.outlines import inputs_of, outline
from dnge_compress.cli.main import main
from dnge_compress.core import claims
from dnge_compress.core.claims import claimed, sweep
from dnge_compress.core.errors import LONGEST, CheckpointError, DngeError, RecipeError, UnknownNameError
from dnge_compress.core.files import atomic_file, disk_errors, write_whole
from dnge_compress.core.folders import atomic_folder
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.recipes.library import validate

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 2**22 + 1  # a process number that Linux never gives
HOLDS = (
    "import sys; from pathlib import Path; from dnge_compress.core.claims import claimed\n"
    "with claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    make("llama").save_pretrained(folder)  # type: ignore[operator]
    return folder


# --- one process writes


def test_a_place_that_another_process_writes_to_is_refused_at_once(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "out": ["compress", str(llama), "-o", "out"],
        "plan.json": ["plan", str(llama), "-o", "plan.json"],
        "lora.json": ["place", str(llama), "-o", "lora.json"],
        "mine.yaml": ["recipes", "cp", "prune/default", "mine.yaml"],
    }
    for name, command in commands.items():
        target = str(tmp_path / name)
        with subprocess.Popen(
            [sys.executable, "-c", HOLDS, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        ) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            assert main([target if word == name else word for word in command]) == 2
            assert f"another process is at work on '{target}'; wait for it" in capsys.readouterr().err
            holder.communicate("")
        assert list(tmp_path.iterdir()) == []


def test_who_holds_a_place_may_write_into_it_and_other_threads_may_not(tmp_path: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with claimed(tmp_path / "out"):
                found.append("entered")
        except CheckpointError as e:
            found.append(str(e))

    with claimed(tmp_path / "out"):
        with atomic_folder(tmp_path / "out") as stage:
            (stage / "a").touch()
        with claimed(tmp_path / "out" / "inside"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1 and "another process is at work" in found[0]
    other()
    assert found[1] == "entered" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folders_on_the_way_to_a_place_vanish_if_they_stay_empty(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "mine.txt").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_a_lock_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".out.dnge-lock").touch()
    with claimed(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_dead_processes_left_goes_and_what_is_written_or_foreign_stays(tmp_path: Path) -> None:
    mine = [f".out.{os.getppid()}.part", ".out.1a.part", "out.3.part", ".out.part", ".out.dnge-new", ".other.5.part"]
    for name in (f".out.{NOBODY}.part", f".out.{10**30}.part", *mine):
        (tmp_path / name).touch()
    (tmp_path / f".out.dnge-new-{NOBODY}-1a2b").mkdir()
    sweep(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(mine)
    (tmp_path / f".out.{NOBODY}.part").touch()
    write_whole(tmp_path / "out", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, "out"])


# --- errors


def test_an_error_is_one_short_line_whatever_it_quotes() -> None:
    for quoted in ("a\nb", "\x1b[2J", "\u202e", "\ud800", "a" * 10**6):
        for error in (DngeError(f"'{quoted}' is wrong; do this"), UnknownNameError("word", quoted, ["a"], "do this")):
            text = str(error)
            assert len(text) <= LONGEST + 3 and text.isprintable() and text.endswith("do this")
    assert str(CheckpointError("'a  b' is kept as it is")) == "'a  b' is kept as it is"


@pytest.mark.parametrize("words", ["PytorchStreamWriter failed writing file", "unexpected pos 64 vs 0"])
def test_a_write_of_torch_that_was_cut_short_is_a_full_disk(words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No space left on device, or the disk failed"), disk_errors(tmp_path):
        raise RuntimeError(f"[enforce fail at inline_container.cc:672] . {words}")
    with pytest.raises(CheckpointError, match=r"can't write .*No space left"), atomic_file(tmp_path / "x") as part:
        part.touch()
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="something else"), atomic_file(tmp_path / "x"):
        raise RuntimeError("something else")
    assert list(tmp_path.iterdir()) == []


# --- files that nobody would write


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", {}, None, 3])
def test_an_index_names_files_beside_it(name: Any, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "other.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    (tmp_path / "llama" / "config.json").write_bytes((llama / "config.json").read_bytes())
    index = {"weight_map": {"a": name, "b": "other.safetensors"}}
    (tmp_path / "llama" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="which is no file beside it"):
        open_model(tmp_path / "llama")


@pytest.mark.parametrize(
    "change", [{"stages": None}, {"stages": {"train": 3}}, {"threads": "many"}, {"threads": [0]}, {"identity": 3}]
)
def test_a_record_of_a_job_that_is_broken_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    record = {"dnge_job": 1, "identity": "a", "threads": 1, "stages": {}} | change
    (tmp_path / "job.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"job\.json'\.{next(iter(change))}.* should"):
        JobFolder(tmp_path).done("train")


@pytest.mark.parametrize(
    "raw",
    [
        *([], {}, 4, {"tuple": {"": None}}, {"dict": [None]}, {"tensor": {"shape": [2]}}, {"tensor": {}, "dict": {}}),
        *({"tensor": {"shape": shape, "dtype": "float32"}} for shape in (["2"], [-1], [10**5, 10**5], 3)),
        *({"tensor": {"shape": [2], "dtype": dtype}} for dtype in ("../x", "load", "", 3)),
    ],
)
def test_an_outline_of_inputs_that_is_none_is_named(raw: Any) -> None:
    with pytest.raises(CheckpointError, match="the outline"):
        inputs_of(raw, "the outline")


def test_an_outline_of_inputs_comes_back() -> None:
    one = torch.zeros(2, 3, dtype=torch.bfloat16)
    for inputs in (one, (one, one.long()), {"x": one}):
        back = inputs_of(json.loads(outline(inputs)), "the outline")
        assert outline(back) == outline(inputs) and type(back) is type(inputs)


def test_a_lora_plan_whose_recipe_is_wrong_says_so() -> None:
    raw = json.loads(place_lora(make("llama")).to_json())
    raw["recipe"]["lora"]["lora_scle"] = 2
    with pytest.raises(RecipeError, match="unknown key 'lora.lora_scle'"):
        LoraPlan.from_json(json.dumps(raw)).lora_config()


def test_a_kind_of_calibration_may_be_anything() -> None:
    with pytest.raises(RecipeError, match=r"calibration\.kind"):
        validate({"calibration": {"kind": {"a": 1}}})


# --- the benchmark itself


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A few trials of everything."""
    return build(tmp_path_factory.mktemp("reliability") / "setting", seed=0, share=0.1)


def row(part: Any, setting: Setting, what: str) -> Row:
    """A row of a part, measured."""
    found: Callable[[], Row] = part.rows(setting)[what]
    return found()


def test_a_mistake_that_passes_or_has_another_cause_is_a_failure(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = reliability_inputs.Mistake("recipes cp prune/default mine.yaml", "another cause")
    silent = reliability_inputs.Mistake("recipes cp prune/default new.yaml", "exists")
    right = reliability_inputs.Mistake("recipes cp prune/default mine.yaml", "exists")
    monkeypatch.setattr(reliability_inputs, "MISTAKES", (wrong, silent, right))
    found = row(reliability_inputs, setting, "3 mistakes on the command line")
    assert [line.partition(": ")[2].split(":")[0] for line in found.failed] == [
        "another cause",
        "0 lines with the cause, or a long one",
    ]


def test_a_kill_that_leaves_something_is_a_failure(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    command = reliability_kills.COMMANDS["place"]
    whole, _, operations = reliability_kills._unbroken(setting, command)
    for is_swept in (True, False):
        if not is_swept:
            monkeypatch.setattr("dnge_compress.core.files.sweep", lambda path: None)
            monkeypatch.setattr("dnge_compress.checkpoint.targets.sweep", lambda path: None)
        kills = [lambda *a, n=n: reliability_kills._at_operation(n, *a) for n in range(operations)]
        said = [reliability_kills._one(setting, command, whole, kill)[1] for kill in kills]
        assert any("touched or left: .lora.json" in line for line in said) is not is_swept
        assert is_swept is not any(said)


@pytest.mark.skipif(os.getuid() != 0, reason="needs the right to mount a tmpfs")
def test_a_half_written_plan_on_a_full_disk_is_a_failure(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    command, codes = reliability_kills.COMMANDS["place"], []
    whole, _, _ = reliability_kills._unbroken(setting, command)
    for is_atomic in (True, False):
        if not is_atomic:
            monkeypatch.setattr("dnge_compress.cli.commands.write_whole", lambda path, text: path.write_text(4 * text))
        trial = partial(reliability_disks._one, setting, command, whole, reliability_disks.Full(0))
        codes.append(forked(partial(reliability_disks._on_small_disk, trial), setting.root).code)
    assert codes == [0, 1]


def test_a_race_without_a_lock_is_a_failure(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    assert row(reliability_races, setting, "2 × `dnge place`").failed == ()
    monkeypatch.setattr(claims, "claimed", lambda target: nullcontext())
    assert row(reliability_races, setting, "2 × `dnge place`").failed


def test_an_input_that_crashes_or_hangs_or_writes_is_a_failure(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(payload: bytes) -> None:
        if b"crash" in payload:
            raise ValueError("no")
        if b"hang" in payload:
            while True:
                pass
        if b"write" in payload:
            Path("/tmp/reliability-outside").write_text("x")

    monkeypatch.setattr(reliability_fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(reliability_fuzz, "payloads", lambda target: reliability_fuzz.st.sampled_from(target.seeds))
    for word, said in (("crash", "ValueError"), ("hang", "Hang"), ("write", "wrote outside"), ("sound", "")):
        kind = Kind(20, lambda folder, word=word: Target([word.encode()], "text", read))
        monkeypatch.setattr(reliability_fuzz, "TARGETS", {"noise": kind})
        failed = row(reliability_fuzz, setting, "noise").failed
        assert (said in failed[0]) if said else failed == ()


def test_a_checkpoint_that_runs_is_a_failure(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = reliability_hostile._auto_map("config.json", "AutoModelForCausalLM")
    words = ("compress", "llama", "-o", "new", "--trust-remote-code")
    traps = {"kind": {"trusted": reliability_hostile.Trap(trap, words, codes=(0, 1, 2))}}
    monkeypatch.setattr(reliability_hostile, "TRAPS", traps)
    architectures = reliability_inputs.edited("llama/config.json", lambda c: c.update(architectures=["Own"]))
    traps["kind"]["trusted"] = reliability_hostile.Trap(
        lambda folder: (trap(folder), architectures(folder)), words, codes=(0, 1, 2)
    )
    assert row(reliability_hostile, setting, "kind").failed[0].startswith("trusted: ")


def test_work_that_leaks_or_differs_is_a_failure(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability_repeats, "WARM", 2)
    monkeypatch.setattr(reliability_repeats, "TIMES", 4)
    kept: list[Any] = []
    leaks = reliability_repeats._repeated(setting, lambda folder: len(kept.append(torch.ones(3 << 20)) or "same"))
    assert any("memory grew" in line for line in leaks.failed)
    differs = reliability_repeats._repeated(setting, lambda folder: os.urandom(4).hex())
    assert any("different results" in line for line in differs.failed)


def test_a_saved_model_loads_while_somebody_writes_beside_it(setting: Setting) -> None:
    with claimed(setting.root / "out"):
        assert load(setting.root / "out").dnge.plan.cuts
