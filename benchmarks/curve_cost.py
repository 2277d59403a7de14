"""What a curve costs beside one compress: seconds on examples/bookworm, everything in one process.

    python benchmarks/curve_cost.py      # ten minutes of a core; writes results/curve_cost.{md,json}

Seconds of the processor are compared, so that other work on the machine counts little; those of the clock stand beside.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, markdown, write
from transformers import AutoModelForCausalLM

from dnge_compress import compress, curve, plan, score

BOOKWORM = Path(__file__).parents[1] / "examples" / "bookworm"
RATIOS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
THREADS = 1


def main() -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(THREADS)
    model: Any = AutoModelForCausalLM.from_pretrained(BOOKWORM, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "scores"
        jobs: dict[str, Callable[[], Any]] = {
            "`compress`, ratio 0.3": lambda: compress(model, ratio=0.3),
            "`curve`, 6 ratios, 0.1 to 0.6": lambda: curve(model, ratios=RATIOS),
            "`compress(ratio=[…])`, the same 6 ratios": lambda: compress(model, ratio=RATIOS),
            "`score`, saved": lambda: score(model).save(saved),
            "`plan` from saved scores, ratio 0.3": lambda: plan(model, ratio=0.3, scores=saved),
            "`compress` from saved scores, ratio 0.3": lambda: compress(model, ratio=0.3, scores=saved),
        }
        compress(model, ratio=0.3, tokens=256)  # libraries are loaded, and memory is taken
        rows = {name: measured(job) for name, job in jobs.items()}
        size = sum(file.stat().st_size for file in saved.iterdir())
    one = next(iter(rows.values()))[0]
    table = [[name, f"{cpu:.0f}", f"{clock:.0f}", f"{cpu / one:.2f}"] for name, (cpu, clock) in rows.items()]
    notes = [
        f"bookworm in float32, `prune/default`, no data, {THREADS} thread; every row once, in one process.",
        f"The saved scores take {size / 1e6:.1f} MB.",
    ]
    head = ["", "seconds of the processor", "of the clock", "over one `compress`"]
    write("curve_cost", "What a curve costs beside one compress", [*markdown(head, table), "", *notes])
    (RESULTS / "curve_cost.json").write_text(json.dumps({"rows": rows, "bytes": size, "notes": notes}, indent=1))


def measured(job: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the processor and of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    job()
    return time.process_time() - cpu, time.perf_counter() - clock


if __name__ == "__main__":
    main()
