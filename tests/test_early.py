"""What is wrong is said in the first second, with its true cause; full and closed disks leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import make
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from dnge_compress import compress, load, open_model, place_lora, plan, save
from dnge_compress.checkpoint.model_files import least_bytes
from dnge_compress.cli.main import main
from dnge_compress.core.errors import CheckpointError, DataError, PlanError, UnknownNameError, first_line
from dnge_compress.core.files import refuse_unreadable
from dnge_compress.core.plugins import Registry
from dnge_compress.data import formats
from dnge_compress.jobs.outline import estimate
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.recipes.data_schema import Dataset
from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.library import validate
from dnge_compress.recipes.methods import PLACERS, SCORERS
from dnge_compress.recipes.schema import Prune

ROOT = Path(__file__).resolve().parents[1]
CHEAP = ("--scorer", "magnitude", "--set", "compensate=none", "--set", "kinds=[neuron]")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 90868376\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    make("llama").save_pretrained(folder)  # type: ignore[operator]
    return folder


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dnge: error: ")]
    assert len(errors) == 1 and "unexpected" not in errors[0]
    return errors[0]


def test_a_command_that_cant_go_well_ends_before_torch_is_loaded(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    (tmp_path / "empty").mkdir()
    shutil.copytree(llama, tmp_path / "run" / "model")
    model, out = str(llama), str(tmp_path / "out")
    commands = {
        "there is no folder": ["compress", str(tmp_path / "none"), "-o", out],
        "has no config.json": ["compress", str(tmp_path / "empty"), "-o", out],
        "empty' has no config.json": [
            "compare",
            model,
            str(tmp_path / "empty"),
            "--data",
            str(tmp_path / "thesis.txt"),
        ],
        "run/model', which has one": ["generate", str(tmp_path / "run"), "It was"],
        "unknown recipe": ["compress", model, "-o", out, "--recipe", "prune/defalt"],
        "stands twice": ["compress", model, "-o", out, "--ratio", "0.3", "--set", "ratio=0.4"],
        "unknown scorer 'obz'": ["compress", model, "-o", out, "--scorer", "obz"],
        "scorer 'fisher' needs real data": ["score", model, "--scorer", "fisher"],
        "placer 'eva' needs real data": ["place", model, "--placer", "eva"],
        "holds the base model itself": ["compress", model, "-o", model, "--force"],
        "holds the folder you work in": ["compress", model, "-o", ".", "--force"],
        "lies in what": ["compress", model, "-o", out, "--work", f"{out}/parts"],
        "name a folder beside it": ["compress", model, "-o", out, "--work", f"{out}/"],
        "thesis.txt' is a file": ["compress", model, "-o", out, "--work", str(tmp_path / "thesis.txt")],
        "holds thesis.txt": ["compress", model, "-o", str(tmp_path)],
        "plan 'none.json' is missing": ["apply", "none.json", model, "-o", out],
        "'none' is not there; name a folder": ["report", "none"],
        "thesis.txt' is a file; name a folder": ["report", str(tmp_path / "thesis.txt")],
        "never deletes": ["apply", str(tmp_path / "thesis.txt"), model, "-o", str(tmp_path), "--force"],
        "none.txt' doesn't exist": ["score", model, "--data", "none.txt"],
        "/proc/self/plan.json' can't be written": ["plan", model, "-o", "/proc/self/plan.json"],
        "/proc/self/lora.json' can't be written": ["place", model, "-o", "/proc/self/lora.json"],
    }
    program = (
        "import json, sys; from dnge_compress.cli.main import main\n"
        "assert {main(c) for c in json.loads(sys.argv[1])} == {2}\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, json.dumps(list(commands.values()))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for words, line in zip(commands, done.stderr.splitlines(), strict=True):
        assert words in line and line.startswith("dnge: error: ")


@pytest.mark.parametrize("command", ["plan", "place", "cp"])
def test_a_disk_that_is_full_is_named_and_nothing_is_left(
    command: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    arguments = {
        "plan": ["plan", str(llama), "-o", str(out), *CHEAP],
        "place": ["place", str(llama), "-o", str(out)],
        "cp": ["recipes", "cp", "prune/default", str(out)],
    }[command]

    def full(self: Path, data: str, **_: Any) -> int:
        with self.open("w", encoding="utf-8") as file:
            file.write(data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    message = complaint(capsys, *arguments)
    assert f"can't write '{out}'" in message and "No space left on device" in message and "make room" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_goes_nowhere_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "dnge_compress", "recipes", "show", "prune/default"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "dnge: error: the output can't be read or written (No space left on device)" in done.stderr


def test_a_plan_of_another_kind_and_an_edited_one_stay_where_they_are(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune, lora = tmp_path / "plan.json", tmp_path / "lora.json"
    assert main(["plan", str(llama), "-o", str(prune), *CHEAP]) == main(["place", str(llama), "-o", str(lora)]) == 0
    for command, path, what in (("plan", lora, "a plan of LoRA adapters"), ("place", prune, "a plan of what to prune")):
        before = path.read_bytes()
        message = complaint(capsys, command, str(llama), "-o", str(path), *(CHEAP if command == "plan" else ()))
        assert f"'{path}' exists and is {what}; name another file, or pass --force" in message
        assert path.read_bytes() == before
    raw = json.loads(prune.read_text(encoding="utf-8"))
    assert main(["plan", str(llama), "-o", str(prune), *CHEAP]) == 0
    raw["cuts"]["ffn.0"] = raw["cuts"]["ffn.0"][:-1]
    prune.write_text(json.dumps(raw), encoding="utf-8")
    assert "was edited by hand" in complaint(capsys, "plan", str(llama), "-o", str(prune), *CHEAP)
    assert json.loads(prune.read_text(encoding="utf-8")) == raw
    message = complaint(capsys, "apply", str(lora), str(llama), "-o", str(tmp_path / "out"))
    assert "is a plan of LoRA adapters, and a plan of what to prune is asked for" in message


def test_a_key_that_stands_twice_in_a_plan_is_refused() -> None:
    text = plan(make("llama"), scorer="magnitude", compensate="none", kinds=["neuron"]).to_json()
    cuts = text.index('"cuts": {')
    twice = text[: cuts + 9] + '"ffn.0": [0],' + text[cuts + 9 :]
    with pytest.raises(PlanError, match=r"key 'ffn\.0' stands twice"):
        PrunePlan.from_json(twice)
    with pytest.raises(PlanError, match="nested too deeply"):
        PrunePlan.from_json("[" * 100_000)


def test_a_plan_comes_through_a_pipe_and_a_strange_one_is_one_line(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = plan(str(llama), scorer="magnitude", compensate="none", kinds=["neuron"]).to_json()
    strange = tmp_path / "strange.json"
    strange.write_text("[" * 100_000)
    assert "nested too deeply" in complaint(capsys, "apply", str(strange), str(llama), "-o", str(tmp_path / "out"))
    assert len(made) < 65536  # the pipe holds it
    for text in (made, made.replace("\n", "\r\n")):
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        try:
            assert main(["apply", f"/dev/fd/{reading}", str(llama), "-o", str(tmp_path / "out")]) == 0
        finally:
            os.close(reading)
        assert load(tmp_path / "out").dnge.plan.cuts == PrunePlan.from_json(made).cuts


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "dnge_plan.json"])
def test_a_file_that_is_closed_to_us_or_a_pointer_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = compress(make("llama"), scorer="magnitude", compensate="none", kinds=["neuron"], ratio=0.2)
    out = save(small, tmp_path / "out")
    content, opened = (out / name).read_bytes(), Path.open
    (out / name).write_text(POINTER, encoding="utf-8")
    for read in (load, open_model):
        with pytest.raises(CheckpointError, match=rf"{name}' is only git-lfs's pointer .* run `git lfs pull`"):
            read(out)
    (out / name).write_bytes(content)

    def closed(self: Path, *arguments: Any, **options: Any) -> Any:  # as root, no mode closes a file
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    for read in (load, open_model):
        with pytest.raises(
            CheckpointError, match=rf"{name}' can't be read \(Permission denied\); allow it \(chmod u\+r"
        ):
            read(out)


def test_what_can_be_read_is_not_refused(llama: Path, tmp_path: Path) -> None:
    refuse_unreadable(llama / "model.safetensors")
    with pytest.raises(CheckpointError, match="is missing"):
        refuse_unreadable(tmp_path / "none")
    weights = load_file(llama / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    refuse_unreadable(tmp_path / "model.safetensors")
    assert place_lora(open_model(llama)).params


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("\n one \ntwo", "one"),
        (
            "Errors in loading:\n\tsize mismatch for x:\n\n copying a shape\nmore",
            "Errors in loading: size mismatch for x: copying a shape",
        ),
        ("nothing follows:", "nothing follows"),
        ("", "ValueError"),
    ],
)
def test_the_first_line_of_an_error_is_not_cut_after_its_colon(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


def test_a_dry_run_shows_stages_and_an_estimate_without_torch(llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "word " * 400}) for _ in range(20)), encoding="utf-8")
    told = [f"model_name_or_path={llama}", f"output_dir={tmp_path / 'out'}", "train.max_length=16"]
    commands = [
        ["run", "jobs/prune-recover", *told, "--dry-run"],
        ["run", "jobs/prune-recover", *told, f"datasets=[{{path: {rows}}}]", "--dry-run", "--json"],
        ["run", "prune/default", *told[:2], "--dry-run"],
    ]
    program = (
        "import json, sys; from dnge_compress.cli.main import main\n"
        "assert all(main(c) == 0 and print('\\f') is None for c in json.loads(sys.argv[1]))\n"
        "assert not {'torch', 'transformers', 'peft', 'accelerate', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    sampled, as_json, alone, _ = done.stdout.split("\f")
    read = done.stderr
    for stage in ("data", "prune", "place", "train", "save", "measure"):
        assert stage in sampled and stage in read
    params = sum(p.numel() for p in open_model(llama).parameters())
    assert f"{params / 1000:.1f} k parameters" in sampled and "about 249 k tokens" in sampled
    assert "about 1,946 steps of 128 tokens" in sampled  # 262,144 tokens, a twentieth held out
    assert "about 9.56 k tokens" in read and "multiply-accumulates" in read
    assert "prune" in alone and "train" not in alone and "disk" in alone
    assert json.loads(as_json)["datasets"][0]["path"] == str(rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def estimated(folder: Path, rows: Path, **told: Any) -> dict[str, str]:
    """The estimate of a job on rows."""
    train = {"max_length": 16, "learning_rate": 1e-3, **told.pop("train", {})}
    raw = {"model_name_or_path": str(folder), "output_dir": "out", "train": train} | told
    return estimate(validate({"datasets": [{"path": str(rows)}], "recipe": "job", **raw}, kind=Job))


def number_in(text: str) -> float:
    """The first number of an estimate."""
    amount, unit = re.search(r"([\d.,]+) ?([kMG]?)", text).groups()  # type: ignore[union-attr]
    return float(amount.replace(",", "")) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit]


def test_an_estimate_counts_the_rows_that_are_read(llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * 40}) + "\n" for _ in range(1000)), encoding="utf-8")
    whole = number_in(estimated(llama, rows)["rows"])
    for source, share in (
        ({"split": "train[:10%]"}, 0.1),
        ({"split": "train[100:300]+train[90%:]"}, 0.3),
        ({"max_rows": 50}, 0.05),
        ({"split": "train[:10%]", "max_rows": 50}, 0.05),
    ):
        found = number_in(estimated(llama, rows, datasets=[{"path": str(rows), **source}])["rows"])
        assert found == pytest.approx(share * whole, rel=0.02), source


def test_an_estimate_counts_tokens_as_the_model_does(llama: Path, tmp_path: Path) -> None:
    rows, own = tmp_path / "rows.txt", tmp_path / "own"
    rows.write_text("one two three\n" * 2000, encoding="utf-8")
    shutil.copytree(llama, own)
    found = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.enable_truncation(7)
    found.save(str(own / "tokenizer.json"))
    assert number_in(estimated(own, rows, eval_fraction=0.5)["rows"]) == pytest.approx(3000, rel=0.02)
    assert number_in(estimated(llama, rows, eval_fraction=0.5)["rows"]) == pytest.approx(14 * 1000 / 4, rel=0.02)
    for suffix in ("JSONL", "json"):
        lines = [json.dumps({"text": "один два три", "n": 1}) for _ in range(1000)]
        escaped = tmp_path / f"rows.{suffix}"
        escaped.write_text("\n".join(lines) if suffix == "JSONL" else f"[{', '.join(lines)}]", encoding="utf-8")
        assert number_in(estimated(own, escaped, eval_fraction=0.5)["rows"]) == pytest.approx(1500, rel=0.02)
    for wrong in ('{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}}', "{"):
        (own / "tokenizer.json").write_text(wrong, encoding="utf-8")  # which is said when it is read in earnest
        assert estimated(own, rows) == estimated(llama, rows)


def test_an_estimate_counts_adapters_and_their_checkpoints(llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * 40}) + "\n" for _ in range(1000)), encoding="utf-8")

    def of(told: Any = None, **budget: float) -> float:
        lora = {"budget": budget, **(told or {})}
        return number_in(estimated(llama, rows, lora=lora, save={"merge_adapter": False})["disk"])

    linear = [m for name, m in open_model(llama).named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    each = 2 * 12 + 4 + 4  # two checkpoints with two moments each, the best, and the result
    assert of(match_uniform_r=4) == pytest.approx(each * sum(4 * sum(m.weight.shape) for m in linear), rel=0.01)
    queries = [m for name, m in open_model(llama).named_modules() if name.endswith("q_proj")]
    only = of({"target_modules": ["q_proj"]}, match_uniform_r=4)
    assert only == pytest.approx(each * sum(4 * sum(m.weight.shape) for m in queries), rel=0.01)
    without = of({"exclude_modules": ["q_proj"]}, match_uniform_r=4)
    assert without == pytest.approx(of(match_uniform_r=4) - only, rel=0.01)
    assert of(trainable_params=1000) == each * 1000
    params = sum(p.numel() for p in open_model(llama).parameters())
    assert of(trainable_fraction=0.5) == pytest.approx(each * params / 2, rel=0.01)


def test_the_rows_of_a_large_file_are_told_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * (30 + i % 7)}) + "\n" for i in range(5000)), encoding="utf-8")
    monkeypatch.setattr(formats, "SAMPLE", 100_000)
    monkeypatch.setattr(formats.RowFile, "__len__", None)
    assert formats.RowFile(rows, Dataset(path=str(rows))).about_rows() == pytest.approx(5000, rel=0.02)


def test_an_estimate_counts_trials_the_teacher_and_the_best_and_says_what_is_only_a_bound(
    llama: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * 40}) + "\n" for _ in range(1000)), encoding="utf-8")

    def of(**told: Any) -> tuple[float, float]:
        found = estimated(llama, rows, **told)
        return number_in(found["work"]), number_in(found["disk"])

    half = {"ratio": 0.5}
    work, disk = of(prune=half)
    assert of(prune=half, distill={})[0] == pytest.approx(work * (3 * 0.5 + 1) / (3 * 0.5), rel=0.01)
    steps = number_in(estimated(llama, rows)["training"])
    assert of(prune=half, train={"learning_rate": "auto"})[0] == pytest.approx(work * (1 + 3 * 40 / steps), rel=0.01)
    params = sum(p.numel() for p in open_model(llama).parameters())
    assert disk == pytest.approx(params * 0.5 * (2 * 4 + 2 * 12 + 4), rel=0.02)
    for what, *words in (
        ("units", "at most", "at most"),
        ("macs", "at most", "about"),
        ("parameters", "about", "about"),
    ):
        found = estimated(llama, rows, prune={"ratio": 0.5, "of": what})
        assert found["disk"].startswith(words[0]) and found["work"].startswith(words[1])


@pytest.mark.parametrize(("of", "least"), [("parameters", 0.5), ("units", 0.125), ("macs", 0.0)])
def test_what_is_left_at_least_depends_on_what_the_ratio_counts(of: Any, least: float, llama: Path) -> None:
    size = (llama / "model.safetensors").stat().st_size
    assert least_bytes(llama, Prune(ratio=0.5, of=of)) == pytest.approx(least * size)
    assert least_bytes(llama, None) == size


@pytest.mark.parametrize("registry", [SCORERS, PLACERS], ids=lambda r: r.what)
def test_what_needs_data_is_known_without_importing_it(registry: Registry) -> None:
    for name in registry.names():
        needs = registry.load(name).NEEDS_DATA
        registry.refuse_unusable(name, has_data=True)
        if needs:
            with pytest.raises(DataError, match="needs real data"):
                registry.refuse_unusable(name, has_data=False)
        else:
            registry.refuse_unusable(name, has_data=False)
    with pytest.raises(UnknownNameError):
        registry.refuse_unusable("nothing", has_data=True)
