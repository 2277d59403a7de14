"""What a scoring pass of the encoder itself costs: seconds and memory of its two passes and readouts, beside
the calibration inputs' own forward and backward pass and a whole score().

    python benchmarks/scoring_cost.py      # minutes, up to 25 on busy cores; writes results/scoring_cost.{md,json}

Weights and node features are random: neither time nor memory depends on their values. Every measurement has a fresh
process; compare the rows of one run, not seconds of two. What takes longer than LIMIT is stopped, or not begun, and
marked.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, markdown, write
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dnge_compress import score
from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.features import FEATURES
from dnge_compress.graph.counting import non_embedding_prices
from dnge_compress.graph.families import build_graph
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.inference import Inputs, call, first_examples

LIMIT = 300  # seconds per measurement
REPETITIONS = 3
BATCH, LENGTH = 32, 64  # of the calibration inputs' pass: 2,048 tokens, as calibration.BATCH_TOKENS
TOKENS = Calibration().tokens
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 32}  # fmt: skip
SIZES = {
    "10 M": {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "num_attention_heads": 6,
             "num_key_value_heads": 2, "vocab_size": 8192},
    "100 M": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
              "num_key_value_heads": 4, "vocab_size": 32000},
}  # fmt: skip


def main() -> None:
    """Measure, print and write the table; with arguments `STAGE SIZE`, one measurement as JSON."""
    if len(sys.argv) == 3:
        print(json.dumps(STAGES[sys.argv[1]](random_model(sys.argv[2]))))
        return
    rows = {size: measure(size) for size in SIZES}
    table = [[key, *(_cell(row[key]) for row in rows.values())] for key in rows["10 M"]]
    write("scoring_cost", "Cost of a scoring pass of the encoder", [*markdown(["", *rows], table), "", *notes()])
    (RESULTS / "scoring_cost.json").write_text(json.dumps({"rows": rows, "notes": notes()}, indent=1))


def measure(size: str) -> dict[str, float | None]:
    """One model's column; None for what takes longer than LIMIT."""
    sizes, alone, memory, passed = (in_fresh_process(stage, size) for stage in ("sizes", "encoder", "memory", "pass"))
    whole = in_fresh_process("score", size) if passed and passed["wall"] < LIMIT / 3 else {}  # it is several passes
    alive = in_fresh_process("memory", size, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    return {
        "non-embedding weights, M": sizes["weights"] / 1e6,
        "encoder alone (two passes and readouts), s": alone["wall"],
        "… CPU s": alone["cpu"],
        f"calibration inputs' own forward + backward pass ({TOKENS:,} tokens), s": passed.get("wall"),
        "… CPU s ": passed.get("cpu"),
        "encoder / pass, CPU": alone["cpu"] / passed["cpu"] if passed else None,
        "whole score(), s": whole.get("wall"),
        "encoder's extra peak memory, MiB": memory["extra"] / 2**20,
        "of it tensors alive at one time, MiB": alive["extra"] / 2**20,
        "weights of the largest block, MiB": sizes["block"] / 2**20,
        "weights of the largest matrix of a block, MiB": sizes["matrix"] / 2**20,
        "weights of the embedding, MiB": sizes["embedding"] / 2**20,
        "extra memory / largest block": memory["extra"] / sizes["block"],
        "extra memory / embedding": memory["extra"] / sizes["embedding"],
        "tensors alive / largest block": alive["extra"] / sizes["block"],
        "tensors alive / embedding": alive["extra"] / sizes["embedding"],
    }


def in_fresh_process(
    stage: str, size: str, *, script: str = __file__, limit: float = LIMIT, **variables: str
) -> dict[str, float]:
    """What a stage of `script` prints; empty if it had to be stopped."""
    command = [sys.executable, script, stage, size]
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{stage} {size}: stopped after {limit} s", file=sys.stderr, flush=True)
        return {}
    if done.returncode:
        raise RuntimeError(f"{stage} {size} failed:\n{done.stderr}")
    print(f"{stage} {size}: {done.stdout.strip()}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def notes() -> list[str]:
    """How to read the table."""
    return [
        f"Llama-like models with random weights, float32, {torch.get_num_threads()} thread(s) on {os.cpu_count()} "
        f"cores, load average {os.getloadavg()[1]:.1f}. CPU seconds leave out the waiting for other jobs.",
        f"The encoder is the median of {REPETITIONS}; the inputs' pass is one batch of {BATCH * LENGTH:,} tokens times "
        f"the number of batches. `–` would have taken more than {LIMIT} s and was not run to its end.",
        "Memory is the rise of the resident peak (VmHWM) over the model at rest, in a process of its own; tensors "
        "alive are the same with a malloc that gives freed tensors back at once, so that nothing else is resident.",
    ]


def sizes_of(model: nn.Module) -> dict[str, float]:
    """Weights without embeddings (number), and bytes of the largest block, its largest matrix, and the embedding."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    prices = non_embedding_prices(model, build_graph(model))
    blocks = [list(b.parameters()) for b in model.model.layers]
    return {
        "weights": sum(torch.Size(s).numel() for n, s in shapes.items() if prices.get(n)),
        "block": max(sum(p.nbytes for p in b) for b in blocks),
        "matrix": max(p.nbytes for b in blocks for p in b),
        "embedding": model.model.embed_tokens.weight.nbytes,
    }


def encoder_seconds(model: nn.Module) -> dict[str, float]:
    """Median seconds of DNGEncoder.forward."""
    forward = encoder_forward(model)
    forward()
    return medians(forward, REPETITIONS)


def encoder_memory(model: nn.Module) -> dict[str, float]:
    """Bytes by which DNGEncoder.forward raises the peak of this process over what it holds before."""
    forward = encoder_forward(model)
    encoder_forward(random_model("tiny"))()  # so that code and libraries are loaded, which weigh more than 100 MiB
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what making the model left over would hide the rise
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    forward()
    return {"extra": _resident("VmHWM") - before}


def encoder_forward(model: nn.Module) -> Callable[[], Any]:
    """A call of the shipped encoder on random node features."""
    graph, encoder = build_graph(model), DNGEncoder.from_pretrained("base")
    weights = {k: v.detach() for k, v in model.state_dict(keep_vars=True).items()}
    features = {s.name: torch.randn(s.units, FEATURES) for s in graph.of_kind("neuron", "head", "channel")}
    costs = {s.name: torch.zeros(s.units) for s in graph.of_kind("layer")}
    return torch.no_grad()(lambda: encoder(graph, weights, features, costs))


def pass_seconds(model: nn.Module) -> dict[str, float]:
    """Seconds of a training step's forward and backward pass over as many tokens as calibration has."""
    batch = {"input_ids": torch.randint(model.config.vocab_size, (BATCH, LENGTH))}

    def step(inputs: Inputs) -> None:
        call(model, inputs).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    step(first_examples([batch], 1)[0])  # warm up
    return {key: value * TOKENS / (BATCH * LENGTH) for key, value in medians(lambda: step(batch), 1).items()}


def score_seconds(model: nn.Module) -> dict[str, float]:
    """Seconds of one score() with default settings: calibration, signals, OBS costs, layers, encoder."""
    started = time.perf_counter()
    score(model, scorer="encoder")
    return {"wall": time.perf_counter() - started}


def medians(action: Callable[[], Any], repetitions: int) -> dict[str, float]:
    """Median wall and CPU seconds of an action."""
    walls, cpus = [], []
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall": statistics.median(walls), "cpu": statistics.median(cpus)}


def random_model(size: str) -> nn.Module:
    """The Llama-like model of a size, with the random weights of its config."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES.get(size, TINY), max_position_embeddings=512)).eval()


def _resident(field: str) -> int:
    """Bytes of a line of this process's status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


STAGES = {
    "sizes": sizes_of,
    "encoder": encoder_seconds,
    "memory": encoder_memory,
    "pass": pass_seconds,
    "score": score_seconds,
}

if __name__ == "__main__":
    main()
