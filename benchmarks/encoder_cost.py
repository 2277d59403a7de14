"""What the encoder's two passes cost at 10 M, 100 M and 1 B weights, as matrix products and edge by edge.

    python benchmarks/encoder_cost.py      # about five minutes; writes results/encoder_cost.{json,md}

Llama-like models with random weights in float32; neither time nor memory depends on their values. Every measurement has
a process of its own. "Edge by edge" is the same message as the paper writes it (encoder_variants.per_edge), one block
at a time; what is equal for all sources is not computed edge by edge in either.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from encoder_variants import per_edge
from harness import RESULTS, markdown, write
from scoring_cost import SIZES, _resident, encoder_forward, in_fresh_process, medians
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dnge_compress.encoder.messages import Message

LIMIT = 600  # seconds per measurement
THREADS = 2
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
WAYS = {"matrix products": ("10 M", "100 M", "1 B"), "edge by edge": ("10 M", "100 M")}


def main() -> None:
    """Measure, print and write the table; with arguments `WAY SIZE`, one measurement as JSON."""
    if len(sys.argv) == 3:
        print(json.dumps(measured(*sys.argv[1:])))
        return
    found = {
        (way, size): in_fresh_process(way, size, script=__file__, limit=LIMIT)
        for way, sizes in WAYS.items()
        for size in sizes
    }
    cells = [
        [way, size, *(f"{r[k]:.2f}" for k in ("weights, M", "seconds", "CPU s", "extra, MiB", "peak / weights"))]
        if r else [way, size, *"–––––"]
        for (way, size), r in found.items()
    ]  # fmt: skip
    head = ["messages", "model", "weights, M", "seconds", "CPU s", "extra memory, MiB", "peak memory / weights"]
    note = (
        f"Both passes and the readouts of the shipped encoder (48 hidden, three basis functions), {THREADS} threads "
        "of two cores, float32, median of three (one at 1 B and edge by edge). Extra memory is the rise of the "
        "resident peak over the model at rest. Other jobs ran beside it, so CPU seconds say more than seconds."
    )
    write("encoder_cost", "Cost of the encoder", [*markdown(head, cells), "", note])
    kept = [{"messages": way, "model": size, **r} for (way, size), r in found.items()]
    (RESULTS / "encoder_cost.json").write_text(json.dumps(kept, indent=1))


def measured(way: str, size: str) -> dict[str, float]:
    """Seconds, CPU seconds and memory of one pass over a model of this size."""
    torch.set_num_threads(THREADS)
    if way == "edge by edge":
        Message.forward = _by_edges  # type: ignore[method-assign]
    sizes = {**SIZES, "1 B": LARGE}[size]
    model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=512)).eval()
    weights = sum(p.numel() for p in model.parameters())
    small = LlamaForCausalLM(LlamaConfig(**SIZES["10 M"], max_position_embeddings=512))
    encoder_forward(small)()  # so that code and libraries are loaded
    forward = encoder_forward(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    times = medians(forward, 1 if size == "1 B" or way == "edge by edge" else 3)
    extra = _resident("VmHWM") - before
    return {"weights, M": weights / 1e6, "seconds": times["wall"], "CPU s": times["cpu"], "extra, MiB": extra / 2**20,
            "peak / weights": 1 + extra / (4 * weights)}  # fmt: skip


def _by_edges(
    self: Message, weight: Tensor, states: Tensor, transposed: bool = False, *, scale: float | Tensor = 1.0
) -> Tensor:
    block = weight * scale
    return per_edge(self, block.transpose(0, 1) if transposed else block, states)


if __name__ == "__main__":
    main()
