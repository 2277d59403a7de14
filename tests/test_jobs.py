"""Jobs: stages, resuming after a kill, several processes, what is left behind, and refusals before any work."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from dnge_compress.cli.main import main
from dnge_compress.core.errors import CheckpointError, DivergedError, DngeError, LaunchError
from dnge_compress.data.rows import Collator, Examples
from dnge_compress.jobs import comparing, measuring, rates, refusals, stages, training
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder, claim
from dnge_compress.jobs.launching import same_threads
from dnge_compress.jobs.measuring import batches_of, summed_loss
from dnge_compress.jobs.rates import find_rate
from dnge_compress.jobs.report.job_report import JobReport
from dnge_compress.jobs.running import run
from dnge_compress.jobs.trainer import WHOLE, JobTrainer
from dnge_compress.jobs.training import last_whole
from dnge_compress.report import speeds

ROOT = Path(__file__).resolve().parents[1]
BOOKWORM = ROOT / "examples" / "bookworm"
STEPS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with the example model's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    tiny = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    tiny.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BOOKWORM).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows of text."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    words = (BOOKWORM / "heldout.txt").read_text(encoding="utf-8").split()
    lines = [json.dumps({"text": " ".join(words[60 * i : 60 * (i + 1)])}) for i in range(40)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe(model: Path, rows: Path, out: Path, **changes: Any) -> Path:
    """A job that prunes, places and trains for a few steps; sections can be replaced, or dropped by None."""
    told: dict[str, Any] = {
        "recipe": "job",
        "model_name_or_path": str(model),
        "output_dir": str(out),
        "scorer": "magnitude",
        "calibration": {"tokens": 256, "length": 16},
        "prune": {"ratio": 0.3, "of": "units", "kinds": ["neuron"]},
        "lora": {"budget": {"match_uniform_r": 2}, "placer": "stable_rank", "lora_dropout": 0.1},
        "datasets": [{"path": str(rows)}],
        "eval_fraction": 0.2,
        "train": {
            "max_length": 32,
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.05,
            "logging_steps": 3,
            "eval_steps": 4,
            "save_steps": 2,
            "use_cpu": True,
        },
    }
    for key, value in changes.items():
        told[key] = {**told.get(key, {}), **value} if isinstance(value, dict) else value
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({k: v for k, v in told.items() if v is not None}), encoding="utf-8")
    return path


def adapter(out: Path) -> dict[str, torch.Tensor]:
    """The trained adapter's weights."""
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished job."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["run", str(recipe(model, rows, out)), "--json"]) == 0
    return out


def test_a_job_leaves_what_it_promises(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {"recipe.yaml", "job.json", "lora_plan.json", "report.json", "report.md", "report.html"} <= names
    assert {"data", "pruned", "adapter", "training", "model"} <= names
    assert (finished / "pruned" / "dnge_plan.json").is_file()


def test_its_report_has_every_point_measured_and_reads_back(finished: Path) -> None:
    report = JobReport.from_dict(json.loads((finished / "report.json").read_text(encoding="utf-8")))
    assert [m.name for m in report.milestones] == ["original", "pruned", "trained"]
    assert all(m.loss is not None and math.isfinite(m.loss) and m.tokens_per_second for m in report.milestones)
    original, pruned, trained = report.milestones
    assert pruned.params < original.params and trained.params == pruned.params
    assert trained.loss is not None and pruned.loss is not None and trained.loss < pruned.loss
    assert report.curves[0].train[-1][0] == STEPS and report.curves[0].held_out[-1][0] == STEPS
    assert report.ranks and report.widths and set(report.seconds) == set(report.stages)


def test_the_result_is_the_lowest_point_of_a_curve_that_begins_before_the_first_step(finished: Path) -> None:
    report = JobReport.from_dict(json.loads((finished / "report.json").read_text(encoding="utf-8")))
    _, pruned, trained = report.milestones
    steps, found = zip(*report.curves[0].held_out, strict=True)
    assert steps == (0, 4, 8)
    assert found[0] == pytest.approx(pruned.loss, abs=1e-4) and min(found) == pytest.approx(trained.loss, abs=1e-4)


def spoil_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `step` steps of training the model becomes sure about what it is wrong about."""
    real = JobTrainer.training_step

    def spoiled(self: Any, trained: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == step:
            norm = next(p for name, p in trained.named_parameters() if name.endswith("model.norm.weight"))
            norm.data *= 30
        return real(self, trained, *arguments, **named)

    monkeypatch.setattr(JobTrainer, "training_step", spoiled)


def test_the_best_evaluation_is_kept_and_not_the_last(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_at(4, monkeypatch)
    train = {"max_steps": 6, "eval_steps": 2, "lr_scheduler_type": "constant", "warmup_steps": 0}
    report = run(job_of(recipe(model, rows, tmp_path / "out", train=train, lora={"lora_dropout": 0.0})))
    assert report is not None
    found = dict(report.curves[0].held_out)
    assert min(found.values()) < found[6], "nothing to tell apart"
    assert report.milestones[-1].loss == pytest.approx(min(found.values()), abs=1e-4)


@pytest.mark.parametrize("lora", [None, {"lora_dropout": 0.0}], ids=["whole", "lora"])
def test_a_training_that_only_harms_leaves_the_pruned_model_and_says_so(
    lora: Any, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_at(0, monkeypatch)
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, train={"max_steps": 4, "eval_steps": 2}, lora=lora)))
    assert report is not None
    found = [loss for _, loss in report.curves[0].held_out]
    assert min(found[1:]) > found[0] + 1, "nothing was harmed"
    _, pruned, trained = report.milestones
    assert trained.loss == pruned.loss
    ours, theirs = (load_file(out / name / "model.safetensors") for name in ("model", "pruned"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "so the result is the pruned model" in report.to_markdown()


def without_stages(out: Path, *stages: str) -> None:
    """Take stages of a job for not done."""
    record = json.loads((out / "job.json").read_text())
    record["stages"] = {name: facts for name, facts in record["stages"].items() if name not in stages}
    (out / "job.json").write_text(json.dumps(record))


def test_a_trained_model_that_is_put_aside_writes_nothing_either(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    without_stages(out, "measure", "save")
    monkeypatch.setattr(comparing, "_is_below", lambda loss, start: False)
    put_aside = run(job_of(recipe(model, rows, out)))
    kept = JobReport.from_dict(json.loads((finished / "report.json").read_text()))
    assert put_aside is not None
    written = [
        [[s.continuations[name] for s in r.samples] for name in ("pruned", "trained")] for r in (kept, put_aside)
    ]
    assert written[0][0] != written[0][1] and written[1][0] == written[1][1]


@pytest.mark.parametrize("lora", [None, {"lora_dropout": 0.0}], ids=["whole", "lora"])
def test_the_first_number_that_is_not_finite_stops_the_job_and_leaves_no_model(
    lora: Any, model: Path, rows: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    train = {"learning_rate": 1e30, "warmup_steps": 0}
    assert main(["run", str(recipe(model, rows, out, train=train, lora=lora))]) == 5
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is not a finite number at step 2; lower train.learning_rate, now 1e+30" in said
    assert not (out / "model").exists() and (out / "pruned").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rate", [1e-4, 1e-2, 1.0, 1e4, 1e10])
def test_no_rate_and_seed_leaves_a_model_worse_than_the_pruned_one(
    rate: float, seed: int, model: Path, rows: Path, tmp_path: Path
) -> None:
    try:
        report = run(job_of(recipe(model, rows, tmp_path / "out", train={"learning_rate": rate}, seed=seed)))
    except DivergedError:
        assert not (tmp_path / "out" / "model").exists()
    else:
        assert report is not None
        _, pruned, trained = report.milestones
        assert trained.loss <= pruned.loss  # type: ignore[operator]


def test_a_learning_rate_is_found_and_said(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, train={"learning_rate": "auto"})))
    assert report is not None and "rate" in report.stages
    found = json.loads((out / "job.json").read_text())["stages"]["rate"]
    losses = {rate: float(loss) for rate, loss in found["tried"]}
    assert len(losses) >= 3 and found["learning_rate"] == min(losses, key=losses.__getitem__)
    start = f"learning rate {found['learning_rate']:g}, by the loss on held-out rows after 4 steps: "
    assert any(note.startswith(start) for note in report.notes)


def test_the_rate_that_was_found_is_the_one_that_trains(model: Path, rows: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {"prune": None, "lora": {"lora_dropout": 0.0}}
    out, plain = tmp_path / "out", tmp_path / "plain"
    run(job_of(recipe(model, rows, out, **told, train={"learning_rate": "auto"})))
    found = (JobFolder(out).done("rate") or {})["learning_rate"]
    run(job_of(recipe(model, rows, plain, **told, train={"learning_rate": found})))
    ours, theirs = adapter(out), adapter(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_placement_that_is_compared_has_a_rate_of_its_own(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def found(loss_at: Any, first: float) -> Any:
        given.append(first)
        return (1e-3, 1e-4)[len(given) - 1], {first: loss_at(first)}

    monkeypatch.setattr(rates, "find_rate", found)
    out = tmp_path / "out"
    train = {"learning_rate": "auto", "max_steps": 2}
    report = run(job_of(recipe(model, rows, out, prune=None, compare=["uniform"], train=train)))
    assert report is not None
    assert any(note.startswith("learning rate of the compared placement uniform: 0.0001,") for note in report.notes)
    taken = {name: torch.load(out / name / "checkpoint-2" / "training_args.bin", weights_only=False).learning_rate
             for name in ("training", "training-uniform")}  # fmt: skip
    assert taken == {"training": 1e-3, "training-uniform": 1e-4} and given == [rates.FIRST_LORA, 1e-3]


def test_trials_leave_nothing_and_evaluate_once(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, judged = [], []
    real_save, real_judge = JobTrainer._save_checkpoint, JobTrainer.trial_loss

    def save(self: Any, *arguments: Any) -> None:
        saved.append(Path(self.args.output_dir).parent.name)
        real_save(self, *arguments)

    def judge(self: Any) -> float:
        judged.append(self.args.learning_rate)
        return real_judge(self)

    monkeypatch.setattr(JobTrainer, "_save_checkpoint", save)
    monkeypatch.setattr(JobTrainer, "trial_loss", judge)
    run(job_of(recipe(model, rows, tmp_path / "out", prune=None, train={"learning_rate": "auto"})))
    assert len(judged) == len(set(judged)) >= 3
    assert "trials" not in saved and "out" in saved
    assert not (tmp_path / "out" / "trials").exists()


@pytest.mark.parametrize(("warmup", "expected"), [(0.1, 0.1), (0, 0), (100, 0.1), (1, 0.001), (2000, 80)])
def test_a_trial_warms_up_for_the_share_of_its_steps_that_the_training_does(warmup: float, expected: float) -> None:
    assert rates.trial_warmup(warmup, steps=1000, trial=40) == pytest.approx(expected)


def test_a_warm_up_that_is_counted_lets_trials_reach_their_rate(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    highest: dict[float, float] = {}
    real = JobTrainer.training_step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        if Path(self.args.output_dir).parent.name == "trials":
            rate = self.args.learning_rate
            highest[rate] = max(highest.get(rate, 0.0), self.lr_scheduler.get_last_lr()[0])
        return real(self, *arguments, **named)

    monkeypatch.setattr(JobTrainer, "training_step", step)
    train = {"learning_rate": "auto", "warmup_steps": 5, "max_steps": 20, "lr_scheduler_type": "constant_with_warmup"}
    run(job_of(recipe(model, rows, tmp_path / "out", prune=None, train=train)))
    assert highest and all(found == pytest.approx(rate) for rate, found in highest.items())


def test_a_rate_that_was_found_and_diverges_later_names_the_next_lower_one(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "find_rate", lambda loss_at, first: (1e30, {1e30: loss_at(1e-3)}))
    train = {"learning_rate": "auto", "warmup_steps": 0}
    with pytest.raises(DivergedError, match=r"write train.learning_rate: 0.03 instead of auto, which found 1e\+30"):
        run(job_of(recipe(model, rows, tmp_path / "out", train=train)))
    assert rates.next_lower(3e-3) == 1e-3 and rates.next_lower(1e-5) == pytest.approx(1e-5 / 3)


def test_a_rate_is_looked_for_until_both_neighbours_are_worse() -> None:
    tried = []

    def loss_at(rate: float) -> float:
        tried.append(rate)
        return math.inf if rate > 2e-2 else abs(math.log(rate / 1e-3))

    assert find_rate(loss_at, first=1e-2)[0] == 1e-3
    assert tried == [1e-2, 3e-2, 3e-3, 1e-3, 3e-4]


def test_rates_that_all_diverge_are_an_error() -> None:
    with pytest.raises(DivergedError, match="every learning rate from 1e-05 to 0.003"):
        find_rate(lambda rate: math.inf, first=3e-3)


def test_models_of_one_shape_are_equally_fast(finished: Path) -> None:
    report = JobReport.from_dict(json.loads((finished / "report.json").read_text(encoding="utf-8")))
    _, pruned, trained = report.milestones
    assert pruned.tokens_per_second == trained.tokens_per_second and pruned.speed_noise == trained.speed_noise


def test_speeds_are_taken_in_turn_the_best_counts_and_their_spread_is_the_noise(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = [AutoModelForCausalLM.from_pretrained(model).eval() for _ in range(2)]
    asked = []

    def seconds(which: Any, batch: Any) -> float:
        asked.append(twins.index(which))
        return 1.0 + 0.1 * (len(asked) // 4 % 3)  # a machine that is slower for a while, and not for one model alone

    monkeypatch.setattr(speeds, "_seconds", seconds)
    first, second = measuring.speeds_of(twins, {"input_ids": torch.zeros(4, 64)})
    assert first == second and first.tokens_per_second == 256 and first.speed_noise == pytest.approx(0.1)
    assert asked[:8] == [0, 1, 0, 1, 1, 0, 0, 1]


def test_the_result_loads_plainly_and_equals_base_plus_adapter(finished: Path) -> None:
    merged = AutoModelForCausalLM.from_pretrained(finished / "model").eval()
    base = AutoModelForCausalLM.from_pretrained(finished / "pruned").eval()
    wrapped = PeftModel.from_pretrained(base, finished / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, wrapped(ids).logits, atol=1e-5, rtol=1e-5)
    assert merged.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 23)
    assert AutoTokenizer.from_pretrained(finished / "model")("hello").input_ids


def test_a_finished_job_run_again_says_so_and_changes_nothing(finished: Path, capsys: Any) -> None:
    def stamps() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}

    before = stamps()
    assert main(["run", str(finished.with_suffix(".yaml")), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "finished; nothing was changed" in err and json.loads(out)["dnge_job_report"] == 1
    assert stamps() == before


def test_the_resolved_recipe_in_the_folder_is_the_same_job(finished: Path) -> None:
    assert job_of(finished / "recipe.yaml") == job_of(finished.with_suffix(".yaml")).model_copy(
        update={"name": job_of(finished / "recipe.yaml").name}
    )


def test_report_shows_a_job_again(finished: Path, capsys: Any) -> None:
    assert main(["report", str(finished)]) == 0
    assert "trained" in capsys.readouterr().out
    assert main(["report", str(finished), "--html"]) == 0
    page = capsys.readouterr().out
    assert page == (finished / "report.html").read_text(encoding="utf-8") + "\n" and "<h2>Sensitivity</h2>" in page


@pytest.fixture(scope="module")
def finished_at_a_found_rate(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished job that found its learning rate."""
    out = tmp_path_factory.mktemp("runs") / "found"
    run(job_of(recipe(model, rows, out, train={"learning_rate": "auto"})))
    return out


@pytest.mark.parametrize("stage", ["data", "prune", "place", "rate", "train", "save", "measure"])
def test_a_job_that_stops_in_any_stage_goes_on_to_the_same_result(
    stage: str, model: Path, rows: Path, tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnge_compress.jobs import running

    rate: Any = "auto" if stage == "rate" else 0.05
    finished = request.getfixturevalue("finished_at_a_found_rate" if stage == "rate" else "finished")

    def torn(some: Any, work: Any) -> Any:
        facts = running_timed(some, work)
        if some.name == stage:
            raise KeyboardInterrupt  # done, but not recorded: the stage is repeated
        return facts

    running_timed = running.timed
    job = job_of(recipe(model, rows, tmp_path / "out", train={"learning_rate": rate}))
    with monkeypatch.context() as patch:
        patch.setattr(running, "timed", torn)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    run(job)
    for name, tensor in adapter(finished).items():
        assert torch.equal(adapter(tmp_path / "out")[name], tensor), name
    assert losses(tmp_path / "out") == losses(finished)


def losses(out: Path) -> Any:
    """Final losses and curves of a report; seconds and speeds differ between runs."""
    report = JobReport.from_dict(json.loads((out / "report.json").read_text(encoding="utf-8")))
    return [m.loss for m in report.milestones], report.curves


def started(path: Path, threads: int) -> subprocess.Popen[bytes]:
    """A job in a process of its own that is given so many CPU threads."""
    return subprocess.Popen(
        [sys.executable, "-m", "dnge_compress", "run", str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_job_says_for_good_that_it_goes_on_with_other_threads(tmp_path: Path, capsys: Any) -> None:
    folder = JobFolder(tmp_path)
    folder.state.write_text(json.dumps({"dnge_job": 1, "identity": "", "threads": 2, "stages": {}}))
    with same_threads(folder):
        assert torch.get_num_threads() == 2
    assert "goes on with 2 CPU threads" in capsys.readouterr().err and torch.get_num_threads() == 1


def test_a_job_whose_folder_records_no_threads_has_one(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.state.write_text(json.dumps({"dnge_job": 1, "identity": "", "stages": {}}))
    assert folder.threads == 1


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_killed_between_checkpoints_ends_bit_equal(
    threads: int, model: Path, rows: Path, finished: Path, tmp_path: Path, capsys: Any
) -> None:
    out, whole = tmp_path / "out", finished
    if threads > 1:  # `finished` was made with the one thread of the tests
        whole = tmp_path / "whole"
        assert started(recipe(model, rows, whole), threads).wait() == 0
    path = recipe(model, rows, out)
    running = started(path, threads)
    deadline = time.monotonic() + 120
    while not list(out.glob(f"training/checkpoint-*/{WHOLE}")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert last_whole(out / "training") is not None
    assert main(["run", str(path), "--json"]) == 0
    assert ("with 2 CPU threads, as the job began" in capsys.readouterr().err) == (threads == 2)
    assert torch.get_num_threads() == 1
    for name, tensor in adapter(whole).items():
        assert torch.equal(adapter(out)[name], tensor), name
    assert losses(out) == losses(whole)


def test_a_torn_checkpoint_is_never_loaded(model: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    path = recipe(model, rows, out)
    record = json.loads((out / "job.json").read_text())
    record["stages"] = {name: record["stages"][name] for name in ("data", "prune", "place")}
    (out / "job.json").write_text(json.dumps(record))
    newest = last_whole(out / "training")
    assert newest is not None
    (newest / WHOLE).unlink()
    (newest / "adapter_model.safetensors").write_bytes(b"torn")
    assert main(["run", str(path), "--json"]) == 0
    assert losses(out) == losses(finished)


def test_without_lora_all_parameters_are_trained(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, lora=None, prune=None)))
    assert report is not None and report.milestones[-1].loss < report.milestones[0].loss  # type: ignore[operator]
    trained = AutoModelForCausalLM.from_pretrained(out / "model")
    start = AutoModelForCausalLM.from_pretrained(model)
    assert not torch.equal(trained.model.norm.weight, start.model.norm.weight)
    assert trained.lm_head.weight is trained.model.embed_tokens.weight


EXPERTS: dict[str, Any] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 3}),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM,
                  {"num_experts": 3, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(EXPERTS))
def test_a_mixture_of_experts_is_trained_whole_and_goes_on_after_a_stop(
    kind: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts have other names in a checkpoint than in the module."""
    config, cls, more = EXPERTS[kind]
    torch.manual_seed(0)
    folder, told = tmp_path / "model", {"lora": None, "prune": None, "train": {"learning_rate": 0.01}}
    cls(config(vocab_size=4096, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=4,
               num_key_value_heads=2, num_experts_per_tok=2, max_position_embeddings=128, initializer_range=0.2,
               bos_token_id=0, eos_token_id=0, **more)).save_pretrained(folder)  # fmt: skip
    AutoTokenizer.from_pretrained(BOOKWORM).save_pretrained(folder)
    whole = run(job_of(recipe(folder, rows, tmp_path / "whole", **told)))
    assert whole is not None and whole.milestones[-1].loss < whole.milestones[0].loss  # type: ignore[operator]
    start, trained = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "whole" / "model"))
    assert start.keys() == trained.keys()
    assert not any(torch.equal(start[name], trained[name]) for name in start if ".experts." in name)
    job = job_of(recipe(folder, rows, tmp_path / "out", **told))
    real = JobTrainer._save_checkpoint

    def killed(self: Any, *arguments: Any) -> None:
        if self.state.global_step > 4:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(JobTrainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    run(job)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_samples_fit_into_the_models_positions(rows: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder, pairs = tmp_path / "model", tmp_path / "pairs.jsonl"
    GPT2LMHeadModel(
        GPT2Config(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BOOKWORM).save_pretrained(folder)
    texts = [json.loads(line)["text"].split() for line in rows.read_text().splitlines()]
    told = [{"prompt": " ".join(words[:36]), "completion": " ".join(words[36:40])} for words in texts]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in told))
    train = {"max_length": 64, "max_steps": 1}
    sources = [{"path": str(pairs), "type": "prompt_completion"}]
    report = run(job_of(recipe(folder, pairs, tmp_path / "out", prune=None, train=train, datasets=sources)))
    assert report is not None and len(report.samples) == 2
    assert all(text for sample in report.samples for text in sample.continuations.values())


def test_compared_placements_are_trained_at_the_same_budget(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, prune=None, compare=["uniform"])))
    assert report is not None
    assert [m.name for m in report.milestones] == ["original", "trained", "trained, uniform"]
    own, uniform = (json.loads((out / f"lora_plan{x}.json").read_text())["params"] for x in ("", "-uniform"))
    assert uniform <= own and uniform > 0.8 * own


def test_a_teacher_has_nothing_to_teach_to_its_equal(model: Path, rows: Path, tmp_path: Path) -> None:
    still = {"learning_rate": 1e-12, "logging_steps": 1}  # the least noise is a gradient to Adam
    report = run(
        job_of(recipe(model, rows, tmp_path / "out", prune={"ratio": 0.0}, distill={"weight": 1.0}, train=still))
    )
    assert report is not None
    assert all(abs(loss) < 1e-5 for _, loss in report.curves[0].train)


def test_a_teacher_is_followed_as_far_as_its_weight_says(model: Path, rows: Path, tmp_path: Path) -> None:
    first = {}
    for weight in (0.0, 0.25, 1.0):
        out = tmp_path / str(weight)
        run(job_of(recipe(model, rows, out, distill={"weight": weight}, train={"logging_steps": 1})))
        first[weight] = JobReport.from_dict(json.loads((out / "report.json").read_text())).curves[0].train[0][1]
    assert first[0.25] == pytest.approx(0.75 * first[0.0] + 0.25 * first[1.0], rel=1e-4)


@pytest.mark.parametrize("weight", [1.0, 0.75])
def test_trials_are_told_apart_by_the_rows_or_by_a_teacher_alone(
    weight: float, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    real = JobTrainer.trial_loss

    def judge(self: Any) -> float:
        total = count = 0.0
        self.model.eval()
        for batch in batches_of(self.held_out, self.data_collator, 3):
            learned = batch["labels"][:, 1:] >= 0
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            with torch.no_grad():
                ours, theirs = (
                    m(**inputs).logits[:, :-1][learned].float() for m in (self.model, self.teaching.teacher)
                )
            p, q = (logits.div(2).log_softmax(-1) for logits in (theirs, ours))  # at a temperature of 2
            if weight == 1:
                total += 4 * float((p.exp() * (p - q)).sum())
            else:
                labels = batch["labels"][:, 1:][learned]
                total += float(torch.nn.functional.cross_entropy(ours, labels, reduction="sum"))
            count += int(learned.sum())
        self.model.train()
        found = real(self)
        judged.append((found, total / count))
        return found

    monkeypatch.setattr(JobTrainer, "trial_loss", judge)
    told = {"distill": {"weight": weight, "temperature": 2.0}, "train": {"learning_rate": "auto"}}
    run(job_of(recipe(model, rows, tmp_path / "out", **told)))
    assert len(judged) >= 3 and all(found == pytest.approx(ours, rel=1e-4) for found, ours in judged)
    losses = dict((JobFolder(tmp_path / "out").done("rate") or {})["tried"])
    assert sorted(losses.values()) == pytest.approx(sorted(found for found, _ in judged))


def test_text_sampled_from_the_model_needs_no_file(model: Path, tmp_path: Path) -> None:
    sources = [{"type": "sampled", "tokens": 2048}]
    report = run(job_of(recipe(model, tmp_path, tmp_path / "out", datasets=sources)))
    assert report is not None and report.rows["train tokens"] > 1000


def test_an_uneven_model_is_recovered_and_saved_too(model: Path, rows: Path, tmp_path: Path) -> None:
    from dnge_compress import load

    prune = {"ratio": 0.2, "of": "parameters", "kinds": ["neuron"], "uneven": True, "allocation": "global"}
    run(job_of(recipe(model, rows, tmp_path / "out", prune=prune)))
    assert load(tmp_path / "out" / "model") is not None


def test_a_prune_recipe_runs_as_a_job_of_its_own(model: Path, tmp_path: Path) -> None:
    told = {"model_name_or_path": str(model), "output_dir": str(tmp_path / "out"), "scorer": "magnitude", "tokens": 256}
    report = run(job_of("prune/neurons", told | {"length": 16}))
    assert report is not None and report.stages == ("prune", "measure")
    assert report.milestones[1].params < report.milestones[0].params and report.milestones[1].loss is None


def test_scorers_and_placers_that_need_data_get_the_jobs_own_rows(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out", scorer="fisher", lora={"placer": "gradient"})
    report = run(job_of(path))
    assert report is not None and report.ranks


def test_a_job_is_the_same_from_wherever_it_is_started(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(model, rows, tmp_path / "out")
    whole = job_of(path)
    monkeypatch.chdir(rows.parent)
    assert job_of(path, {"datasets.0.path": rows.name}) == whole


def test_two_processes_train_as_one_at_doubled_batch(model: Path, rows: Path, tmp_path: Path) -> None:
    lora = {"lora_dropout": 0.0}
    one, two = tmp_path / "one", tmp_path / "two"
    batch = {"per_device_train_batch_size": 4}
    assert main(["run", str(recipe(model, rows, one, lora=lora, train=batch))]) == 0
    assert main(["run", str(recipe(model, rows, two, lora=lora, launch={"num_processes": 2}))]) == 0
    for name, tensor in adapter(one).items():
        torch.testing.assert_close(adapter(two)[name], tensor, atol=1e-4, rtol=0)
    machine = json.loads((two / "report.json").read_text())["machine"]
    assert (machine["processes"], machine["strategy"]) == ("2", "ddp")


def test_a_curve_counts_every_step_once_at_the_end_of_an_epoch_too(model: Path, rows: Path, tmp_path: Path) -> None:
    steps = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 8, "eval_steps": 1}
    report = run(job_of(recipe(model, rows, tmp_path / "out", prune=None, train=steps)))
    assert report is not None
    told = [step for step, _ in report.curves[0].held_out]
    assert told == sorted(set(told)) and len(told) > 8


def test_accumulated_batches_train_as_one(model: Path, rows: Path, tmp_path: Path) -> None:
    lora = {"lora_dropout": 0.0}
    one, many = tmp_path / "one", tmp_path / "many"
    run(job_of(recipe(model, rows, one, lora=lora, train={"per_device_train_batch_size": 4})))
    run(job_of(recipe(model, rows, many, lora=lora, train={"gradient_accumulation_steps": 2})))
    for name, tensor in adapter(one).items():
        torch.testing.assert_close(adapter(many)[name], tensor, atol=1e-4, rtol=0)


def test_a_claim_that_was_killed_can_be_made_again(model: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml.part").write_text("recipe: j")
    (tmp_path / "out" / "recipe.yaml").write_text("recipe: job")
    run(job)
    assert losses(tmp_path / "out") == losses(finished)


def test_a_half_precision_job_measures_the_model_that_it_saves(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, dtype="bfloat16", save={"flat_adapter": True})))
    assert report is not None
    saved = AutoModelForCausalLM.from_pretrained(out / "model")
    assert saved.dtype == torch.bfloat16 and saved.model.rotary_emb.inv_freq.dtype == torch.float32
    total, count = summed_loss(saved, batches_of(Examples.load(out / "data" / "held_out.safetensors"), Collator(0), 8))
    assert total / count == pytest.approx(report.milestones[-1].loss, abs=1e-6)
    assert (out / "flat_adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_several_processes_end_with_a_killed_leader_and_the_next_run_waits_for_them(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train = {"max_steps": 4000, "save_steps": 2, "per_device_train_batch_size": 1}
    path = recipe(model, rows, out, launch={"num_processes": 2}, train=train)
    leader = subprocess.Popen(
        [sys.executable, "-m", "dnge_compress", "run", str(path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not list(out.glob(f"training/checkpoint-*/{WHOLE}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    with claim(JobFolder(out), job_of(path), {}, 1):  # comes when the workers are gone
        last = last_whole(out / "training")
        time.sleep(2)
        assert last == last_whole(out / "training")


@pytest.mark.slow
def test_an_outer_launcher_is_joined_and_its_size_checked(model: Path, rows: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = recipe(model, rows, tmp_path / "out", launch={"num_processes": 2}, train={"per_device_train_batch_size": 1})
    command = [*launcher, "-m", "dnge_compress", "run", str(path), "--json"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["machine"]["processes"] == "2"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "nothing was changed" in again.stderr
    alone = recipe(model, rows, tmp_path / "other", launch={"num_processes": 1})
    refused = subprocess.run(
        [*launcher, "-m", "dnge_compress", "run", str(alone)], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode != 0 and "asks for 1, but 2 were launched" in refused.stderr


def test_a_training_on_fewer_processes_than_asked_for_is_an_error(model: Path, rows: Path, tmp_path: Path) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out", launch={"num_processes": 2}))
    alone = job.model_copy(update={"launch": job.launch.model_copy(update={"num_processes": 1})})
    run(alone)
    with pytest.raises(LaunchError, match="asks for 2, but 1 train"):
        training.train(JobFolder(tmp_path / "out"), job)


def test_sharding_that_is_not_obtained_is_an_error(model: Path, rows: Path, tmp_path: Path) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out"))
    run(job)
    asked = job.launch.model_copy(update={"strategy": "fsdp2"})
    with pytest.raises(LaunchError, match="fsdp"):
        training.train(JobFolder(tmp_path / "out"), job.model_copy(update={"launch": asked}))


def refusal(path: Path, *told: str) -> str:
    """The one line of a job that is refused before any work."""
    from dnge_compress.recipes.library import assignments

    with pytest.raises(DngeError) as caught:
        run(job_of(path, assignments(told)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_can_be_refused_is_refused_before_any_work(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out")
    assert "names no output_dir" in refusal(path, "output_dir=''")
    assert "nothing to train on" in refusal(path, "datasets=[]")
    assert "unknown scorer 'magnitud'; did you mean 'magnitude'" in refusal(path, "scorer=magnitud")
    assert "unknown placer 'unifrm'; did you mean 'uniform'" in refusal(path, "lora.placer=unifrm")
    assert "needs real data" in refusal(path, "scorer=fisher", "~train", "datasets=[]")
    assert "missing.jsonl" in refusal(path, "datasets.0.path=missing.jsonl")
    assert not (tmp_path / "out").exists()


def test_an_empty_section_is_refused_and_not_taken_for_an_absent_one(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out")
    for section in ("lora", "prune", "train"):
        text = yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != section})
        other = tmp_path / f"{section}.yaml"
        other.write_text(f"{section}:\n{text}")
        assert f"{other}:1: '{section}' is empty; write `{section}: {{}}`" in refusal(other)
        flowing = yaml.safe_dump(yaml.safe_load(text), default_flow_style=True, width=10**6).strip()
        for written in (f"{{{section}: , {flowing[1:]}", f"{section}: !!null\n{text}"):
            other.write_text(written)
            assert f"'{section}' is empty" in refusal(other)
        assert f"'{section}=': nothing stands behind '='; write {section}=null or ~{section}" in refusal(
            path, f"{section}="
        )
        if section != "train":  # which datasets need
            other.write_text(f"{section}: null\n{text}")
            assert getattr(job_of(other), section) is None


def test_a_teacher_of_a_model_that_nothing_prunes_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out", prune=None)
    assert "give prune, or a weight below 1" in refusal(path, "distill={weight: 1}")
    assert job_of(path, {"distill": {"weight": 0.5}}).distill is not None


def extended(model: Path, folder: Path, **tokens: Any) -> Path:
    """The model with a tokenizer that knows more tokens than it has rows."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(tokens.get("words", []))
    tokenizer.add_special_tokens(tokens.get("special", {}))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("added", [{"words": ["bookworm"]}, {"special": {"pad_token": "[PAD]"}}], ids=["word", "pad"])
def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused_at_once(
    added: Any, model: Path, rows: Path, tmp_path: Path
) -> None:
    path = recipe(extended(model, tmp_path / "model", **added), rows, tmp_path / "out")
    assert "has 1 token more than the model's 4,096 rows" in refusal(path)


def test_a_control_token_beyond_the_rows_is_refused_only_where_it_is_used(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    wider = extended(model, tmp_path / "model", special={"additional_special_tokens": ["<image>"]})
    told = {"prune": None, "train": {"max_steps": 1}}
    assert run(job_of(recipe(wider, rows, tmp_path / "out", **told))) is not None
    marked = tmp_path / "marked.jsonl"
    marked.write_text(rows.read_text() + json.dumps({"text": "an <image> here"}) + "\n")
    with pytest.raises(DngeError, match=r"the rows hold token 4096 \('<image>'\), but the model has 4,096 rows"):
        run(job_of(recipe(wider, marked, tmp_path / "other", **told)))


def test_a_damaged_model_is_refused_without_pruning_too(model: Path, rows: Path, tmp_path: Path, capsys: Any) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(model, damaged)
    weights = load_file(damaged / "model.safetensors")
    next(t for name, t in weights.items() if "down_proj" in name)[0, 0] = math.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    assert main(["run", str(recipe(damaged, rows, tmp_path / "out", prune=None))]) == 2
    assert "holds NaN values; the model is damaged" in capsys.readouterr().err


def test_data_that_changed_since_a_stop_are_read_again_and_the_rest_stands(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    own = tmp_path / "own.jsonl"
    shutil.copy(rows, own)
    job = job_of(recipe(model, own, tmp_path / "out", calibrate_on="synthetic"))
    assert "prune" in stages.stages_that_saw_data(job_of(recipe(model, own, tmp_path / "other")))
    folder = JobFolder(Path(job.output_dir))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    pruned, trained = folder.done("prune"), folder.done("train")
    tokens = (folder.done("data") or {})["train"]["tokens"]
    os.utime(own, (1, 1))  # touched, but the same
    with monkeypatch.context() as patch:
        patch.setattr(stages, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    assert "changed" not in capsys.readouterr().err and folder.done("train") == trained
    lines = own.read_text().splitlines()
    own.write_text("\n".join(lines[:30]) + "\n")
    report = run(job)
    said = capsys.readouterr().err
    assert f"'{own}' changed since this job was stopped; data, train, measure, save start over" in said
    assert report is not None and report.rows["train tokens"] < tokens and folder.done("prune") == pruned
    assert losses(tmp_path / "out") == losses_of_a_fresh_run(model, own, tmp_path / "fresh")


def test_a_kill_while_stages_are_forgotten_begins_them_again_and_spares_the_users_files(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "out", JobFolder(tmp_path / "out")
    shutil.copytree(finished, out)
    for name in ("training.txt", "training-notes/a"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        folder.forget(["data", "train", "measure", "save"], [""])
    assert set(folder.read()["stages"]) == {"data", "prune", "place"} and (out / "training").is_dir()
    monkeypatch.undo()
    folder.forget(["data", "train", "measure", "save"], [""])
    assert set(folder.read()["stages"]) == {"prune", "place"} and not (out / "training").exists()
    assert (out / "training.txt").read_text() == (out / "training-notes" / "a").read_text() == "mine"


def stopped(work: Any) -> Any:
    """A stage that never comes to its end."""
    raise KeyboardInterrupt


def losses_of_a_fresh_run(model: Path, rows: Path, out: Path) -> Any:
    """What a job that was never stopped comes to."""
    run(job_of(recipe(model, rows, out, calibrate_on="synthetic")))
    return losses(out)


def test_a_budget_above_what_ranks_can_use_is_said(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out", prune=None, train={"max_steps": 1})
    report = run(job_of(path, {"lora.budget.trainable_params": 10**9}))
    assert report is not None and any("parameters unused" in note for note in report.notes)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("train.optim=adamw_troch", "unknown optimizer 'adamw_troch'; did you mean 'adamw_torch"),
        ("train.optim=adamw_bnb_8bit", "train.optim 'adamw_bnb_8bit' can't be used here"),
        ("train.report_to=wandbb", "unknown reporter 'wandbb'; did you mean 'wandb'"),
        ("train.report_to=comet_ml", "train.report_to is 'comet_ml', which isn't installed"),
        ("lora.target_modules=[q_porj]", "unknown target 'q_porj'; did you mean 'q_proj'"),
        ("lora.exclude_modules=[nothing]", "unknown target 'nothing'"),
        ("prune.within=model.leyers.0", "unknown part of the model 'model.leyers.0'"),
        ("datasets.0.type=messages", "the tokenizer has no chat template"),
    ],
)
def test_what_would_fail_after_minutes_is_refused_before_a_stage_begins(
    told: str, words: str, model: Path, rows: Path, tmp_path: Path
) -> None:
    from dnge_compress.recipes.library import assignments

    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    path = recipe(model, chats if "messages" in told else rows, tmp_path / "out")
    with pytest.raises(DngeError) as caught:
        run(job_of(path, assignments([told])))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_optimizer_is_looked_up_without_setting_a_device_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun that would open the process group, for CPUs."""

    def opened(self: Any, *_: Any, **__: Any) -> None:
        raise AssertionError("the process group is opened")

    monkeypatch.setattr(accelerate.PartialState, "__init__", opened)
    refusals._refuse_optimizer("adamw_torch")
    with pytest.raises(DngeError, match="can't be used here"):
        refusals._refuse_optimizer("adamw_bnb_8bit")


def test_a_job_without_room_for_its_results_says_how_much_is_missing(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(CheckpointError, match=r"kB are needed there, and 1.00 kB are free; make room"):
        run(job_of(recipe(model, rows, tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_recipe_is_refused_and_the_difference_named(finished: Path) -> None:
    message = refusal(finished.with_suffix(".yaml"), "train.learning_rate=0.5")
    assert "belongs to another recipe (train.learning_rate was 0.05, now 0.5)" in message


def test_a_first_try_that_failed_does_not_bind_the_folder(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out", prune=None)
    with pytest.raises(DngeError, match="smallest"):
        run(job_of(path, {"lora.budget.trainable_params": 3}))
    assert run(job_of(path)) is not None


def test_what_a_models_config_says_is_told_at_once(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out")
    assert "model folder '/no/such/model' doesn't exist" in refusal(path, "model_name_or_path=/no/such/model")
    assert "has 128 positions" in refusal(path, "train.max_length=129")
    assert "set ddp" in refusal(path, "launch={strategy: fsdp2, num_processes: 2}")


def test_a_result_that_was_taken_away_is_made_again(model: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "model")
    run(job_of(recipe(model, rows, out)))
    assert (out / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    "gone",
    [("training", "model"), ("adapter", "model"), ("training", "report.json"), ("adapter",), ("lora_plan.json",),
     ("data", "training", "model"), ("pruned", "flat_adapter")],
    ids=" ".join,
)  # fmt: skip
def test_whatever_was_taken_away_of_a_finished_job_is_made_again(
    gone: tuple[str, ...], model: Path, rows: Path, finished_flat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished_flat, out)
    for name in gone:
        (shutil.rmtree if (out / name).is_dir() else os.remove)(out / name)
    run(job_of(recipe(model, rows, out, save={"flat_adapter": True})))
    assert {p.name for p in finished_flat.iterdir()} == {p.name for p in out.iterdir()}
    for name in ("model/model.safetensors", "flat_adapter/adapter_model.safetensors"):
        ours, theirs = load_file(out / name), load_file(finished_flat / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert losses(out) == losses(finished_flat)


@pytest.fixture(scope="module")
def finished_flat(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished job that left everything it can."""
    out = tmp_path_factory.mktemp("runs") / "flat"
    run(job_of(recipe(model, rows, out, save={"flat_adapter": True})))
    return out


def test_a_whole_model_whose_checkpoints_were_taken_away_is_trained_again_only_if_it_is_needed(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    job = job_of(recipe(model, rows, out, lora=None, prune=None))
    run(job)
    shutil.rmtree(out / "training")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", stopped)
        assert run(job) is not None  # room was made, and nothing is missing
    weights = load_file(out / "model" / "model.safetensors")
    shutil.rmtree(out / "model")
    run(job)
    again = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_folder_that_is_no_job_of_ours_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert "holds no job of ours" in refusal(recipe(model, rows, tmp_path / "out"))


def test_two_runs_in_one_folder_are_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out"))
    folder = JobFolder(Path(job.output_dir))
    with claim(folder, job, {}, 1), pytest.raises(CheckpointError, match="another run is at work"):
        run(job)


def test_an_impossible_budget_exits_with_its_code(model: Path, rows: Path, tmp_path: Path, capsys: Any) -> None:
    told = ["lora.budget.trainable_params=3", "~prune"]
    assert main(["run", str(recipe(model, rows, tmp_path / "out")), *told]) == 3
    assert "smallest" in capsys.readouterr().err


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = JobTrainer._save_checkpoint

    def full(self: Any, *arguments: Any) -> None:
        if self.state.global_step > 2:
            raise OSError(28, "No space left on device")
        real(self, *arguments)

    job = job_of(recipe(model, rows, tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(JobTrainer, "_save_checkpoint", full)
        with pytest.raises(CheckpointError, match="No space left.*the last whole checkpoint stays"):
            run(job)
    last = last_whole(tmp_path / "out" / "training")
    assert last is not None and last.name == "checkpoint-2"
    run(job)
    assert losses(tmp_path / "out") == losses(finished)


def test_dry_run_shows_the_stages_and_does_nothing(model: Path, rows: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["run", str(recipe(model, rows, tmp_path / "out")), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in ("data", "prune", "place", "train", "save", "measure"))
    assert not (tmp_path / "out").exists()


def test_a_job_for_an_encoder_says_what_to_do(rows: Path, tmp_path: Path) -> None:
    from models import make

    folder = tmp_path / "bert"
    made: Any = make("bert")
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BOOKWORM).save_pretrained(folder)
    with pytest.raises(DngeError, match="a job trains causal language models"):
        run(job_of(recipe(folder, rows, tmp_path / "out", prune=None, lora=None)))


def test_running_a_recipe_of_another_kind_by_a_wrong_name_offers_the_nearest() -> None:
    with pytest.raises(DngeError, match="did you mean 'jobs/prune-recover'"):
        job_of("jobs/prune-recovr")
