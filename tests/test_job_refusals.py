"""What jobs refuse before any work."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_jobs import BOOKWORM, finished, model, recipe, rows, stopped
from transformers import AutoTokenizer

from dnge_compress.cli.main import main
from dnge_compress.core.errors import CheckpointError, DngeError, LaunchError, RecipeError
from dnge_compress.jobs import folder as folders
from dnge_compress.jobs import refusals, stages
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.folder import JobFolder, claim
from dnge_compress.jobs.running import run
from dnge_compress.jobs.trainer import JobTrainer
from dnge_compress.recipes.job_schema import Distill

__all__ = ["finished", "model", "rows"]  # fixtures


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


def test_what_no_stage_would_use_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out")
    bare = ("~train", "datasets=[]")
    assert "eval_datasets is for a training" in refusal(path, *bare, f"eval_datasets=[{{path: {rows}}}]")
    assert "launch.num_processes is for a training" in refusal(path, *bare, "launch.num_processes=2")
    assert "save says what becomes of an adapter" in refusal(path, "~lora", "save.flat_adapter=true")
    assert "compare names stable_rank, which lora.placer is already" in refusal(path, "compare=stable_rank")
    assert "scorer 'wanda' scores on the rows" in refusal(path, "scorer=wanda", "calibrate_on=synthetic")


def test_several_devices_in_one_process_are_refused_before_any_work(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "uses_cpu", lambda job: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    path = recipe(model, rows, tmp_path / "out")
    assert "one process would share its batches among 2 devices by itself; set launch.num_processes=2" in refusal(path)
    assert not (tmp_path / "out").exists()


def test_what_a_model_of_the_hub_tells_once_it_is_fetched_is_refused_before_it_is_pruned(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(recipe(model, rows, tmp_path / "out"))
    places = {"someone/model": model, "someone/teacher": extended_rows(model, tmp_path / "teacher")}
    monkeypatch.setattr(refusals, "locate", lambda path, allow_pickle: places[str(path)])
    train = job.train.model_copy(update={"max_length": 4096})  # type: ignore[union-attr]
    fetched = {"model_name_or_path": "someone/model"}
    with pytest.raises(DngeError, match="max_length is 4096, but 'someone/model' has 128 positions"):
        refusals.refuse_fetched(job.model_copy(update={**fetched, "train": train}))
    taught = job.model_copy(update={**fetched, "distill": Distill(teacher="someone/teacher")})
    with pytest.raises(DngeError, match="distill.teacher 'someone/teacher' has 4,100 tokens, and the model 4,096"):
        refusals.refuse_fetched(taught)
    with pytest.raises(DngeError, match="max_length is 4096"):
        run(job.model_copy(update={**fetched, "train": train, "output_dir": str(tmp_path / "other")}))
    assert not JobFolder(tmp_path / "other").done("prune")


def extended_rows(model: Path, folder: Path) -> Path:
    """The model's config, of four tokens more."""
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 4100}))
    return folder


def test_a_folder_whose_model_is_placed_answers_for_no_other_recipe(model: Path, rows: Path, tmp_path: Path) -> None:
    placed = {"prune": None, "train": None, "datasets": None}
    run(job_of(recipe(model, rows, tmp_path / "out", **placed)))
    with pytest.raises(RecipeError, match="belongs to another recipe .lora.budget.match_uniform_r was 2, now 3"):
        job_of(recipe(model, rows, tmp_path / "out", **placed, lora={"budget": {"match_uniform_r": 3}}))


def test_how_to_train_may_change_until_something_is_trained(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def too_large(self: Any, *arguments: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(JobTrainer, "training_step", too_large)
        with pytest.raises(LaunchError, match="too little memory .*; lower train.per_device_train_batch_size, now 2"):
            run(job_of(recipe(model, rows, out)))
    pruned = JobFolder(out).done("prune")
    for other in ({"prune": {"ratio": 0.2}}, {"train": {"max_length": 16}}, {"train": {"packing": False}}):
        with pytest.raises(RecipeError, match="belongs to another recipe"):
            job_of(recipe(model, rows, out, **other))
    smaller = recipe(model, rows, out, train={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2})
    assert run(job_of(smaller)) is not None and JobFolder(out).done("prune") == pruned
    with pytest.raises(RecipeError, match="belongs to another recipe"):
        job_of(recipe(model, rows, out))  # now it is trained


def test_a_kill_between_recipe_and_record_lends_no_stage_to_another_recipe(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed, out = {"prune": None, "train": None, "datasets": None}, tmp_path / "out"
    first = job_of(recipe(model, rows, out, **placed))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(first)
    assert JobFolder(out).done("place")
    other, real = (
        job_of(recipe(model, rows, out, **placed, lora={"budget": {"match_uniform_r": 3}})),
        folders.write_whole,
    )

    def killed(path: Path, text: str) -> None:
        real(path, text)
        if path.name == "recipe.yaml":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            run(other)
    report = run(other)
    assert report is not None and {rank.rank for rank in report.ranks} != {2}
    assert JobFolder(out).read_lora_plan().params == JobFolder(out).done("place")["params"]  # type: ignore[index]
