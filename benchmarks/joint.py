"""The joint repair against the one side by side and against as many parameters more kept as neurons, without data.

    python benchmarks/joint.py [--only MiniLM] [--seeds 3]     # an hour of a core; goes on where it was

Half of the feed-forward neurons of every layer go. Measure: KL divergence from the whole network's answers, in nats
(for MiniLM half the squared error over the variance), on held-out books for bookworm, else as in
results/independent.md. Writes results/joint.{md,json}.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyarrow.parquet as pq
import torch
from harness import DATA, JOINT, SIDE, Source, keep_rows, kept_rows, markdown, over_seeds, write
from independent import judged_by
from lora import EXAMPLE
from strangers import STRANGERS, Stranger, in_batches
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

NAME = "joint"
RATIO = 0.5
MORE = 0.01  # of the whole network's parameters
ARMS = {SIDE: (SIDE, 0.0), JOINT: (JOINT, 0.0), f"{SIDE}, 1 % more parameters kept": (SIDE, MORE)}
WINDOW, WINDOWS = 128, 16  # tokens, and how many of every held-out book
MODELS = ("bookworm", "stories260k (Llama)", "MiniLM (BERT)")


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in MODELS:
        if options.only in name:
            measure(name, bookworm if name == "bookworm" else STRANGERS[name], options.seeds)
    publish()


def bookworm() -> Stranger:
    """The example model, judged on windows of books that it was not trained on."""
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE)
    rows = []
    for text in pq.read_table(DATA / "books_valid.parquet")["text"].to_pylist():
        ids = torch.tensor(tokenizer(text[:120_000], add_special_tokens=False, verbose=False).input_ids)
        every = len(ids) // WINDOW // WINDOWS
        rows += [ids[i * every * WINDOW :][:WINDOW] for i in range(WINDOWS)]
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32).eval()
    return Stranger(model, lambda seed: [], in_batches({"input_ids": torch.stack(rows)}))


def measure(name: str, open_it: Callable[[], Stranger], seeds: int) -> None:
    """All arms of one model that aren't measured yet."""
    wanted = [(name, arm, seed) for seed in range(seeds) for arm in ARMS]
    missing = [key for key in wanted if key not in {tuple(row["row"]) for row in kept_rows(NAME)}]
    if not missing:
        return
    stranger = open_it()
    judge = judged_by(stranger)
    for seed in dict.fromkeys(key[2] for key in missing):
        source = Source(stranger.model, seed=seed)
        for key in (key for key in missing if key[2] == seed):
            repair, more = ARMS[key[1]]
            started = time.process_time()
            small = source.prune("encoder", repair, "prune/neurons", ratio_of(source, more))
            row = {
                "row": key,
                "damage": judge(small),
                "expected": source.damage.nats,
                "parameters": count(small),
                "whole": count(stranger.model),
                "seconds": time.process_time() - started,
            }
            keep_rows(NAME, [*kept_rows(NAME), row])
            print(row, flush=True)


def ratio_of(source: Source, more: float) -> float:
    """The share of the neurons that goes if a share `more` of all parameters is kept for others of them."""
    graph = source.context.graph
    spaces = graph.of_kind("neuron")
    sizes = {name: tensor.shape for name, tensor in source.context.weights.items()}
    prices = [
        sum(sizes[s.param].numel() / sizes[s.param][s.axis] for s in graph.slots_of(space.name)) for space in spaces
    ]
    units = round(more * count(source.model) / sum(prices))  # of every layer
    return RATIO - units / spaces[0].units


def count(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def publish() -> None:
    """results/joint.md."""
    rows = kept_rows(NAME)
    found = {(model, arm): [r for r in rows if r["row"][:2] == [model, arm]] for model in MODELS for arm in ARMS}
    body = []
    for (model, arm), own in found.items():
        if not own:
            continue
        before = {r["row"][2]: r["damage"] for r in found[(model, SIDE)]}
        shares = [1 - r["damage"] / before[r["row"][2]] for r in own]
        body.append(
            (
                model,
                arm,
                f"{own[0]['parameters']:,}",
                over_seeds([r["damage"] for r in own], 4),
                "" if arm == SIDE else f"{statistics.fmean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})",
                over_seeds([r["expected"] for r in own], 4),
                f"{statistics.fmean(r['seconds'] for r in own):.0f}",
            )
        )
    head = (
        "network", "repair", "parameters", "damage", "taken back (over seeds)", "damage on calibration inputs",
        "seconds",
    )  # fmt: skip
    lines = [*(__doc__ or "").split("\n\n")[2:], *markdown(head, body), ""]
    lines += ["Seconds are of the processor, for the plan, the repair and the judging; scores are made once a seed."]
    write(NAME, "Joint repair", lines)


if __name__ == "__main__":
    main()
