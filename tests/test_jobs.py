"""Jobs: what they leave behind, and what they train."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_jobs import BOOKWORM, STEPS, adapter, finished, losses, model, recipe, rows
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from dnge_compress.cli.main import main
from dnge_compress.data.rows import Collator, Examples
from dnge_compress.jobs import measuring
from dnge_compress.jobs.checking import job_of
from dnge_compress.jobs.measuring import batches_of, summed_loss
from dnge_compress.jobs.report.job_report import JobReport
from dnge_compress.jobs.running import run
from dnge_compress.jobs.trainer import JobTrainer
from dnge_compress.report import speeds

__all__ = ["finished", "model", "rows"]  # fixtures


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


def test_a_half_precision_job_measures_the_model_that_it_saves(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(job_of(recipe(model, rows, out, dtype="bfloat16", save={"flat_adapter": True})))
    assert report is not None
    saved = AutoModelForCausalLM.from_pretrained(out / "model")
    assert saved.dtype == torch.bfloat16 and saved.model.rotary_emb.inv_freq.dtype == torch.float32
    total, count = summed_loss(saved, batches_of(Examples.load(out / "data" / "held_out.safetensors"), Collator(0), 8))
    assert total / count == pytest.approx(report.milestones[-1].loss, abs=1e-6)
    assert (out / "flat_adapter" / "adapter_model.safetensors").is_file()


def test_a_budget_above_what_ranks_can_use_is_said(model: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(model, rows, tmp_path / "out", prune=None, train={"max_steps": 1})
    report = run(job_of(path, {"lora.budget.trainable_params": 10**9}))
    assert report is not None and any("parameters unused" in note for note in report.notes)


def test_dry_run_shows_the_stages_and_does_nothing(model: Path, rows: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["run", str(recipe(model, rows, tmp_path / "out")), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in ("data", "prune", "place", "train", "save", "measure"))
    assert not (tmp_path / "out").exists()
