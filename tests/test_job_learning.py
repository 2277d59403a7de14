"""How jobs learn: the best is kept, the rate is found, a teacher is followed, and nothing broken is saved."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_jobs import adapter, finished, model, recipe, rows, without_stages

from dnge_compress.cli.main import main
from dnge_compress.core.errors import DivergedError
from dnge_compress.jobs import milestones, rates, running, trainer
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.measuring import batches_of
from dnge_compress.jobs.rates import find_rate
from dnge_compress.jobs.report.job_report import JobReport
from dnge_compress.jobs.running import run
from dnge_compress.jobs.trainer import JobTrainer

__all__ = ["finished", "model", "rows"]  # fixtures


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


def test_a_trained_model_that_is_put_aside_writes_nothing_either(
    model: Path, rows: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    without_stages(out, "measure", "save")
    monkeypatch.setattr(milestones, "_is_below", lambda loss, start: False)
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
    assert said.endswith("run the job again, in another output_dir if something is trained already")
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
    best = min(losses, key=losses.__getitem__)
    # The training has 8 steps and the trials 4: the best of them may be one rung too low, a factor of about 3.
    assert len(losses) >= 3 and found["longer"] == 2 and best <= found["learning_rate"] <= 3.4 * best
    assert losses[found["learning_rate"]] <= losses[best] + rates.LITTLE
    start = f"learning rate {found['learning_rate']:g}, by the loss on held-out rows after 4 steps: "
    assert any(note.startswith(start) for note in report.notes)


def test_a_rate_that_was_not_the_best_of_those_tried_is_explained() -> None:
    found = {"learning_rate": 3e-3, "tried": [(1e-3, 2.1), (3e-3, 2.11), (1e-2, "Infinity")]}
    assert running._higher(found, 10.0) == (
        "; 0.001 is best there, and a training 10 times as long takes a higher rate that loses at most 0.02 nats by it"
    )
    assert running._higher(found | {"tried": [(1e-3, 2.11), (3e-3, 2.11)]}, 10.0) == ""


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

    def found(loss_at: Any, first: float, longer: float) -> Any:
        given.append(first)
        rate = (1e-3, 1e-4)[len(given) - 1]
        return rate, {first: loss_at(first), rate: 2.0}

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
    monkeypatch.setattr(rates, "find_rate", lambda loss_at, first, longer: (1e30, {1e30: loss_at(1e-3)}))
    train = {"learning_rate": "auto", "warmup_steps": 0}
    with pytest.raises(DivergedError, match=r"write train.learning_rate: 0.03 instead of auto, which found 1e\+30"):
        run(job_of(recipe(model, rows, tmp_path / "out", train=train)))
    assert rates.next_lower(3e-3) == 1e-3 and rates.next_lower(1e-5) == pytest.approx(1e-5 / 3)


def test_a_rate_is_looked_for_until_both_neighbours_are_worse() -> None:
    tried = []

    def loss_at(rate: float) -> float:
        tried.append(rate)
        return math.inf if rate > 2e-2 else abs(math.log(rate / 1e-3))

    assert find_rate(loss_at, first=1e-2, longer=1)[0] == 1e-3
    assert tried == [1e-2, 3e-2, 3e-3, 1e-3, 3e-4]


@pytest.mark.parametrize(
    ("longer", "price", "expected"),
    [
        (2, 0.001, 1e-3),  # times 1.6: nearer to the same rung than to three times the rate
        (10, 0.001, 3e-3),  # times 4.6
        (26, 0.001, 1e-2),  # times 8.8
        (26, 0.01, 3e-3),  # 1e-2 loses .023 nats in a short training
        (26, 0.1, 1e-3),
        (10**6, 0.001, 1e-2),  # what diverges is no rate, however long the training
    ],
)
def test_a_rate_for_a_long_training_is_higher_as_far_as_short_ones_lose_little(
    longer: float, price: float, expected: float
) -> None:
    def loss_at(rate: float) -> float:
        return math.inf if rate > 2e-2 else 4 + price * abs(math.log(rate / 1e-3))

    assert find_rate(loss_at, first=1e-3, longer=longer)[0] == expected


def test_rates_that_all_diverge_are_an_error() -> None:
    with pytest.raises(DivergedError, match="every learning rate from 1e-05 to 0.003"):
        find_rate(lambda rate: math.inf, first=3e-3, longer=10)


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
    report = run(job_of(recipe(model, rows, tmp_path / "out", **told)))
    assert report is not None
    by = "divergence from the teacher" if weight == 1 else "loss"
    assert any(f", by the {by} on held-out rows after" in note for note in report.notes)
    assert len(judged) >= 3 and all(found == pytest.approx(ours, rel=1e-4) for found, ours in judged)
    losses = dict((JobFolder(tmp_path / "out").done("rate") or {})["tried"])
    assert sorted(losses.values()) == pytest.approx(sorted(found for found, _ in judged))


def test_a_loss_that_is_not_finite_in_an_early_part_of_a_step_stops_the_job_too(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = JobTrainer.compute_loss, []

    def loss(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(self.state.global_step)
        found = real(self, *arguments, **named)
        return found * math.nan if len(calls) == 5 else found  # the first of two parts of the third step

    monkeypatch.setattr(JobTrainer, "compute_loss", loss)
    monkeypatch.setattr(trainer, "_has_finite_gradients", lambda model: True)  # as a scaler in float16 leaves it
    told = {"gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    with pytest.raises(DivergedError, match="the loss is not a finite number at step 3"):
        run(job_of(recipe(model, rows, tmp_path / "out", prune=None, train=told)))
