"""What to write instead of the keys that people bring along from other tools, or from transformers before 5."""

from __future__ import annotations

from dnge_compress.recipes.job_schema import Job
from dnge_compress.recipes.keys import RENAMED, Keys, keys_at

GONE = "transformers 5 has no such argument"
FAMILIAR = {
    # axolotl, LLaMA-Factory, TRL, torchtune
    "base_model": "write model_name_or_path",
    "model": "write model_name_or_path",
    "model_path": "write model_name_or_path",
    "output": "write output_dir",
    "dataset": "write datasets, a list",
    "dataset_name": "write datasets: [{path: …}]",
    "train_file": "write datasets: [{path: …}]",
    "test_datasets": "write eval_datasets",
    "val_set_size": "write eval_fraction",
    "ds_type": "the file's suffix tells",
    "field": "write columns: {text: …}",
    "text_column": "write columns: {text: …}",
    "dataset_text_field": "write columns: {text: …}",
    "sequence_len": "write train.max_length",
    "cutoff_len": "write train.max_length",
    "max_seq_length": "write train.max_length",
    "sample_packing": "write train.packing",
    "lora_r": "write lora.budget.match_uniform_r",
    "lora_rank": "write lora.budget.match_uniform_r",
    "r": "write lora.budget.match_uniform_r",
    "lora_alpha": "write lora.lora_scale, which is alpha / rank",
    "rank_pattern": "the placer makes it; bound it by lora.min_rank and lora.max_rank",
    "alpha_pattern": "the placer makes it; see lora.alpha_rule",
    "lora_target": "write lora.target_modules",
    "lora_target_modules": "write lora.target_modules",
    "lora_target_linear": "write lora.target_modules: all-linear",
    "use_peft": "give a lora section",
    "adapter": "give a lora section",
    "finetuning_type": "give a lora section, or none to train all parameters",
    "num_epochs": "write train.num_train_epochs",
    "epochs": "write train.num_train_epochs",
    "micro_batch_size": "write train.per_device_train_batch_size",
    "batch_size": "write train.per_device_train_batch_size",
    "lr": "write train.learning_rate",
    "optimizer": "write train.optim",
    "lr_scheduler": "write train.lr_scheduler_type",
    "load_in_4bit": "quantised training is not supported",
    "load_in_8bit": "quantised training is not supported",
    "pruning_ratio": "write prune.ratio",
    "global_pruning": "write prune.allocation: global, with prune.uneven: true",
    "ignored_layers": "write prune.protected",
    "uniform_layers": "write prune.uneven",
    "resume_from_checkpoint": "a job goes on by itself where it was stopped",
    "deepspeed": "not supported; write launch.strategy: fsdp2",
    "fsdp": "write launch.strategy: fsdp2",
    "fsdp_config": "write launch.strategy: fsdp2",
    # transformers before 5
    "warmup_ratio": f"{GONE}; write train.warmup_steps, a share of all steps if below 1",
    "evaluation_strategy": f"{GONE}; a job evaluates every train.eval_steps",
    "eval_strategy": "a job evaluates every train.eval_steps",
    "save_strategy": "a job saves every train.save_steps",
    "logging_strategy": "a job logs every train.logging_steps",
    "overwrite_output_dir": f"{GONE}; name another output_dir to start anew",
    "logging_dir": f"{GONE}",
    "group_by_length": f"{GONE}; train.packing fills rows instead",
    "no_cuda": f"{GONE}; write train.use_cpu",
    "per_gpu_train_batch_size": f"{GONE}; write train.per_device_train_batch_size",
    "tokenizer": "the model's own is used",
    "nproc_per_node": "write launch.num_processes",
}


def hint(keys: Keys, recipe: str) -> str:
    """What to do about an unknown key of a recipe of the kind `recipe`, or ''."""
    if recipe != "job" and len(keys) == 1 and keys[0] in keys_at(Job, ()):
        return f"'{keys[0]}' is for jobs: write recipe: job at the top"
    if keys[-1] in RENAMED:
        return f"it is called '{RENAMED[keys[-1]]}' now"
    return FAMILIAR.get(keys[-1], "")
