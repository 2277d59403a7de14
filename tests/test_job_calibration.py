"""What a job prunes on: its own rows to train on where they are real text, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_jobs import model, recipe, rows

from dnge_compress.data.rows import Examples
from dnge_compress.jobs import stages
from dnge_compress.jobs.calibrating import TOO_FEW, calibration_rows
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.running import run

__all__ = ["model", "rows"]  # fixtures


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every `compress` of a job is given as data."""
    seen: list[Any] = []
    real = stages.api.compress

    def compress(model: Any, recipe: Any, *, data: Any = None, **options: Any) -> Any:
        seen.append(data)
        return real(model, recipe, data=data, **options)

    monkeypatch.setattr(stages.api, "compress", compress)
    return seen


def test_a_job_prunes_on_its_own_rows_to_train_on_and_says_so(
    model: Path, rows: Path, tmp_path: Path, given: list[Any]
) -> None:
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, lora=None, train={"max_steps": 2})))
    assert report is not None
    (data,) = given
    train, held_out = (
        {tuple(row["input_ids"].tolist()) for row in Examples.load(path)}
        for path in (JobFolder(out).train_rows, JobFolder(out).held_out_rows)
    )
    seen = {
        tuple(ids[mask.bool()].tolist())
        for batch in data
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert seen and seen <= train and not seen & held_out
    assert sum(map(len, seen)) <= 256 + 32, "as many tokens as the recipe asks for"
    assert any(note.startswith("calibrated on 9 of ") and "of the job's rows" in note for note in report.notes)
    assert any("is read as text (text): all of it is learned" in note for note in report.notes)


@pytest.mark.parametrize(
    "changes",
    [{"calibrate_on": "synthetic"}, {"datasets": [{"type": "sampled", "tokens": 1024}]}],
    ids=["turned off", "no real text"],
)
def test_without_real_rows_or_if_told_so_the_models_own_text_is_taken(
    changes: dict[str, Any], model: Path, rows: Path, tmp_path: Path, given: list[Any]
) -> None:
    told = {"lora": None, "train": {"max_steps": 1}, "calibration": {"tokens": 128}}
    report = run(job_of(recipe(model, rows, tmp_path / "out", **told, **changes)))
    assert report is not None and given == [None]
    assert not any("calibrated on" in note for note in report.notes)


def test_few_rows_are_not_trusted_and_that_is_said(model: Path, rows: Path, tmp_path: Path, given: list[Any]) -> None:
    told = {"lora": None, "train": {"max_steps": 1}, "calibration": {"tokens": 30_000, "length": 32}}
    report = run(job_of(recipe(model, rows, tmp_path / "out", check=False, repair={"compensate": "none"}, **told)))
    assert report is not None and given == [None] and TOO_FEW in report.notes


def test_sampled_rows_among_real_ones_are_not_taken(model: Path, rows: Path, tmp_path: Path) -> None:
    out, sources = tmp_path / "out", [{"path": str(rows)}, {"type": "sampled", "tokens": 1024}]
    job = job_of(recipe(model, rows, out, datasets=sources, lora=None, prune=None, train={"max_steps": 1}))
    run(job)
    found = Examples.load(JobFolder(out).train_rows)
    assert 0 < found.real.sum() < len(found)
    real = {tuple(found[i]["input_ids"].tolist()) for i in np.flatnonzero(found.real)}
    data = calibration_rows(JobFolder(out), job, is_needed=False)
    assert data is not None
    seen = {
        tuple(ids[mask.bool()].tolist())
        for batch in data
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert seen and seen <= real
