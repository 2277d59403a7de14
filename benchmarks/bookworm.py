"""The example language model: FFN neurons removed from every layer, and the whole `compress(ratio=0.2)`.

    python benchmarks/bookworm.py          # about 10 minutes on two cores; writes results/bookworm*.{md,json}

Measure: increase of the held-out log-perplexity in nats per token; lower is better. Real data are 256 windows of 64
tokens of the training books.
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import torch
from harness import DATA, DEFAULT, Source, Table
from rivals import folding, optipfair, torch_pruning
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
from perplexity import perplexity  # noqa: E402

RATIOS = (0.3, 0.5, 0.7)
ARMS = (
    ("random", "none"),
    ("random", "lstsq"),
    ("obs", "none"),
    ("obs", "lstsq"),
    ("encoder", "lstsq"),
    ("encoder", DEFAULT),
)
UNSEEDED_ARMS = (("magnitude", "none"), ("magnitude", "lstsq"))
DATA_ARMS = (
    ("flap", "none"),
    ("flap", "lstsq"),
    ("fisher", "none"),
    ("fisher", "lstsq"),
    ("obs", "lstsq"),
    ("encoder", "lstsq"),
    ("encoder", DEFAULT),
)


def main() -> None:
    """Run all arms and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--characters", type=int, default=50_000, help="of the held-out text")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = EXAMPLES / "bookworm"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = (folder / "heldout.txt").read_text(encoding="utf-8")[: options.characters]
    before = math.log(perplexity(model, tokenizer, held_out))

    def judge(small: nn.Module) -> float:
        return math.log(perplexity(small, tokenizer, held_out)) - before

    neurons = Table(
        name="bookworm", title="Bookworm: increase of log-perplexity after removing FFN neurons", ratios=RATIOS
    )
    whole = Table(
        name="bookworm_default",
        title="Bookworm: increase of log-perplexity at a ratio of all non-embedding parameters",
        ratios=(0.2, 0.35),
    )
    sources = [(Source(model, seed=s), "none", ARMS if s else (*ARMS, *UNSEEDED_ARMS)) for s in range(options.seeds)]
    sources.append((Source(model, data=real_windows(tokenizer)), "256 windows", DATA_ARMS))
    for source, data, arms in sources:
        for scorer, repair in arms:
            key = (scorer, repair, data)
            neurons.measure(key, partial(source.prune, scorer, repair, "prune/neurons"), judge, source.seed)
            whole.measure(key, partial(source.prune, scorer, repair, "prune/default"), judge, source.seed)
    by_costs = partial(sources[0][0].prune_by_costs, "magnitude", "prune/default")
    whole.measure(("magnitude, split by its own costs", "none", "none"), by_costs, judge)
    ids = tokenizer(held_out[:400], return_tensors="pt").input_ids
    neurons.measure(("torch-pruning 1.6", "none", "none"), lambda r: torch_pruning(model, {"input_ids": ids}, r), judge)
    neurons.measure(("optipfair (MAW)", "none", "none"), lambda r: optipfair(model, r), judge)
    neurons.measure(
        ("model folding (our k-means version, no variance repair)", "none", "none"), lambda r: folding(model, r), judge
    )
    for table in (neurons, whole):
        table.notes += [
            f"The dense model's perplexity on this text is {math.exp(before):.2f}.",
            f"Mean ± standard deviation over {options.seeds} seeds of the inputs where the row depends on them.",
        ]
        table.write(("selection", "repair", "data"))


def real_windows(tokenizer, count: int = 256, length: int = 64) -> list[dict[str, torch.Tensor]]:
    """Evenly spread windows of the training books."""
    import pyarrow.parquet

    path = DATA / "books_train.parquet"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; set DNGE_DATA to the folder with the data sets")
    texts = pyarrow.parquet.read_table(path)["text"].to_pylist()
    step = max(1, len(texts) * 4 // count)
    windows = [
        tokenizer(text[at : at + 600]).input_ids[:length]
        for text in texts[::step]
        for at in range(5000, 5000 + 4000 * (count * step // len(texts) + 1), 4000)
    ]
    ids = torch.tensor([w for w in windows if len(w) == length][:count])
    return [{"input_ids": part} for part in ids.split(32)]


if __name__ == "__main__":
    main()
