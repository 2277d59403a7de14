"""How long it takes to read an architecture from its config, and how much memory, one core.

    python benchmarks/derivation.py [--only llama_8b,switch_64]   # some minutes

Configs of the sizes that people bring, on the meta device: no weights are loaded. Each is read in a process of its own;
measured are its processor seconds in `derive` and the most memory that it ever held, torch and transformers among it.
Writes results/derivation.json and .md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from dnge_compress.graph.derivation.derive import derive

RESULTS = Path(__file__).with_name("results") / "derivation.json"
Config = tuple[str, Any]


def llama_8b() -> Config:
    """Llama 3 of 8 billion parameters."""
    return "LlamaForCausalLM", tf.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip


def moe_128() -> Config:
    """Qwen3's mixture of 128 experts."""
    return "Qwen3MoeForCausalLM", tf.Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    )  # fmt: skip


def llava_7b() -> Config:
    """LLaVA 1.5 with its tower."""
    text = tf.LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    vision = tf.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    return "LlavaForConditionalGeneration", tf.LlavaConfig(text_config=text, vision_config=vision)


def qwen2_5_vl_7b() -> Config:
    """Qwen2.5-VL with its tower, which takes pictures of any size."""
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=151655, video_token_id=151656)
    return "Qwen2_5_VLForConditionalGeneration", config


def switch_64() -> Config:
    """Switch Transformers with 64 experts, each a module of its own."""
    return "SwitchTransformersForConditionalGeneration", tf.SwitchTransformersConfig(num_experts=64)


CONFIGS: dict[str, Callable[[], Config]] = {
    make.__name__: make for make in (llama_8b, moe_128, llava_7b, qwen2_5_vl_7b, switch_64)
}


def measured(name: str) -> dict[str, Any]:
    """What one derivation took, in this process."""
    torch.set_num_threads(1)
    builder, config = CONFIGS[name]()
    with torch.device("meta"):
        model = getattr(tf, builder)(config)
    started = time.process_time()
    found = derive(model)
    seconds = time.process_time() - started
    kinds = [axes.counted.label for axes in found.axes] + [".".join(map(str, s.blocks.key)) for s in found.stacks]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"config": name, "seconds": round(seconds, 1), "peak_mb": round(peak), "counted": kinds}


def main() -> None:
    """Measure what the command line names, each in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(CONFIGS))
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measured(options.here)))
        return
    known = {row["config"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))} if RESULTS.exists() else {}
    for name in options.only.split(","):
        command = [sys.executable, __file__, "--here", name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        known[name] = json.loads(out.splitlines()[-1])
        print(known[name], flush=True)
    rows = [known[name] for name in CONFIGS if name in known]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = ["# Reading an architecture", "", *__doc__.strip().splitlines()[4:6], "", "| config | s | MB | counted |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {r['config']} | {r['seconds']} | {r['peak_mb']} | {', '.join(r['counted'])} |" for r in rows]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
