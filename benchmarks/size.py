"""How time and memory of `dnge compress` grow with the model: random weights of true shapes, from folder to folder.

    python benchmarks/size.py [--only 100M,1B] [--tokens 16384] [--ratio 0.2] [--recipe prune/neurons]

Memory is that of the whole process tree: what is its own (anonymous) and what is mapped from files, which the system
takes back when it needs room. The floor is the time of the calibration tokens' products, forward and backward, at the
rate of matrix products measured in the same run; a pass is what transformers itself takes for as many tokens there and
back, where gradients of all weights fit. Writes results/size.{md,json}; the models lie in out/sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import keep_rows, kept_rows, markdown, write
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig, Qwen2Config

FOLDER = Path(__file__).parents[1] / "out" / "sizes"
SHARD_BYTES = 1 << 30
SCALE = 0.02  # standard deviation of the weights
NOTES = [
    "Two cores; other work ran beside, so seconds by the clock are upper bounds. Random weights in bfloat16.",
    "What is its own can't be taken back by the system; the rest of the peak is mapped from files: weights,",
    "moments, repaired weights. At the end the smaller weights lie in memory, in a share of what is free.",
    "8B was killed once, in a stage that is kept block by block since; 3B ended at a proof that rounding failed, which",
    "is mended. Both went on from their parts, and their seconds are the sum of both runs.",
]
GEMM = 2048  # side of the products that the rate is measured with
PASS_BYTES = 3 << 30  # of weights, up to which a pass is measured
TEXTS, LENGTH = 8, 128  # of a pass at a time, and tokens of each
MIB = 1 << 20


def llama(**sizes: Any) -> LlamaConfig:
    """A Llama whose texts begin with token 1."""
    return LlamaConfig(**{"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2, **sizes})


SHAPES: dict[str, PreTrainedConfig] = {
    "10M": llama(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
                 num_key_value_heads=4, vocab_size=8000),
    "100M": llama(hidden_size=640, intermediate_size=1728, num_hidden_layers=14, num_attention_heads=10,
                  num_key_value_heads=5),
    "0.5B, vocabulary 152k": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2),
    "1.1B": llama(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                  num_key_value_heads=4),
    "3B, 16 experts": MixtralConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=3584, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=4, num_local_experts=16, num_experts_per_tok=2, bos_token_id=1, eos_token_id=2),
    "8B": llama(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                num_key_value_heads=8, vocab_size=128256, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
}  # fmt: skip


def main() -> None:
    """Make what is missing, compress each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of names, with commas between")
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--recipe", default="prune/neurons")
    options = parser.parse_args()
    for name in SHAPES:
        if any(part in name for part in options.only.split(",")):
            measure(name, options.recipe, options.ratio, options.tokens)
    rows = sorted((row["cells"] for row in kept_rows("size")), key=lambda row: [*SHAPES].index(row["model"]))
    columns = max(rows, key=len)
    lines = markdown([*columns], [[row.get(column, "–") for column in columns] for row in rows])
    write("size", "Time and memory of a compress, by size", [*lines, "", *NOTES])


def measure(name: str, recipe: str, ratio: float, tokens: int) -> None:
    """One row of the table."""
    folder, out = made(name), FOLDER / "result"
    shutil.rmtree(out, ignore_errors=True)
    rate = products_per_second()
    command = [sys.executable, "-m", "dnge_compress", "compress", folder, "-o", out, "--json", "--recipe", recipe]
    command += ["--ratio", str(ratio), "--set", f"calibration.tokens={tokens}"]
    started, before = time.perf_counter(), os.times()
    peak, own, code, said = watched([str(part) for part in command])
    taken, after = time.perf_counter() - started, os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    floor = 4 * tokens * matrix_numbers(SHAPES[name]) / rate
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    cells = {
        "model": name,
        "recipe": f"{recipe}, {ratio:g}",
        "weights, MiB": f"{size / MIB:,.0f}",
        "calibration tokens": f"{tokens:,}",
        "time, s": f"{taken:,.0f}" if code == 0 else f"failed ({code})",
        "processor, s": f"{worked:,.0f}",
        "times the floor": f"{taken / floor:.1f}",
        "times a pass": f"{taken / seconds_of_pass(folder, tokens):.1f}" if size < PASS_BYTES else "–",
        "stages, s": ", ".join(f"{stage} {seconds:,.0f}" for stage, seconds in stages_in(said).items()),
        "peak, MiB": f"{peak / MIB:,.0f}",
        "of it its own, MiB": f"{own / MIB:,.0f}",
    }
    print(cells, flush=True)
    keep_rows("size", [*(row for row in kept_rows("size") if row["cells"]["model"] != name), {"cells": cells}])


def made(name: str) -> Path:
    """The folder of a model with random weights, written shard by shard."""
    folder = FOLDER / name.replace(", ", "-").replace(" ", "-")
    if (folder / "config.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.bfloat16)
    index: dict[str, str] = {}
    for number, names in enumerate(shards(model)):
        file = f"model-{number:05}.safetensors"
        save_file({n: drawn(model.get_parameter(n)) for n in names}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder


def drawn(like: nn.Parameter) -> torch.Tensor:
    """Random values for a matrix, ones for a gain."""
    if like.dim() < 2:
        return torch.ones(like.shape, dtype=like.dtype)
    return (SCALE * torch.randn(like.shape)).to(like.dtype)


def shards(model: nn.Module) -> Iterator[list[str]]:
    """Names of parameters, as many as fit into a shard."""
    names, size = [], 0
    for name, p in model.named_parameters():
        if names and size + p.nbytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += p.nbytes
    yield names


def matrix_numbers(config: PreTrainedConfig) -> int:
    """Numbers that each token is multiplied with: all matrices but the embedding, of experts those that it meets."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    tables = {id(model.get_input_embeddings().weight)} - {id(model.get_output_embeddings().weight)}
    return int(
        sum(
            p.numel() * (share if p.dim() == 3 else 1)
            for p in model.parameters()
            if p.dim() > 1 and id(p) not in tables
        )
    )


def products_per_second() -> float:
    """Floating-point operations per second of bfloat16 products, the best of some."""
    a, b = (torch.randn(GEMM, GEMM).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * GEMM**3 / best


def seconds_of_pass(folder: Path, tokens: int) -> float:
    """How long transformers takes for random tokens there and back, after a first batch that isn't counted."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    texts = torch.randint(4, model.config.vocab_size, (tokens // LENGTH, LENGTH))

    def there_and_back(part: torch.Tensor) -> None:
        model(input_ids=part, labels=part).loss.backward()

    there_and_back(texts[:TEXTS])
    started = time.perf_counter()
    for part in texts.split(TEXTS):
        there_and_back(part)
    return time.perf_counter() - started


def stages_in(said: str) -> dict[str, float]:
    """Seconds of each stage, as the report has them."""
    return json.loads(said)["timings"] if said.strip() else {}


def watched(command: list[str]) -> tuple[int, int, int, str]:
    """Run a command; the peak of its tree's resident memory and of what of it is its own, in bytes, its exit code, and
    what it printed."""
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen(command, stdout=out) as process:
        peak = own = 0
        while process.poll() is None:
            found = [memory_of(pid) for pid in tree(process.pid)]
            peak, own = max(peak, sum(f[0] for f in found)), max(own, sum(f[1] for f in found))
            time.sleep(0.1)
        out.seek(0)
        return peak, own, process.returncode, out.read()


def tree(pid: int) -> list[int]:
    """A process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in tree(int(child)))]


def memory_of(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, all of them and those of its own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {
        key: int(rest.split()[0]) << 10
        for key, _, rest in (line.partition(":") for line in lines)
        if "Rss" in key or "RSS" in key
    }
    return found.get("VmRSS", 0), found.get("RssAnon", 0)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
