"""A job on a tiny model that ends within seconds, and what its tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dnge_compress.cli.main import main
from dnge_compress.jobs.report.job_report import JobReport

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


def losses(out: Path) -> Any:
    """Final losses and curves of a report; seconds and speeds differ between runs."""
    report = JobReport.from_dict(json.loads((out / "report.json").read_text(encoding="utf-8")))
    return [m.loss for m in report.milestones], report.curves


def stopped(work: Any) -> Any:
    """A stage that never comes to its end."""
    raise KeyboardInterrupt


def without_stages(out: Path, *stages: str) -> None:
    """Take stages of a job for not done."""
    record = json.loads((out / "job.json").read_text())
    record["stages"] = {name: facts for name, facts in record["stages"].items() if name not in stages}
    (out / "job.json").write_text(json.dumps(record))
