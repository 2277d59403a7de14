"""Recovery of the example model after pruning, beside its rivals: the arms, what they end with, and the tables.

`python benchmarks/jobs.py --only recovery` measures them.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
from typing import Any

import pyarrow.parquet as pq
from harness import DATA, markdown, paired
from job_processes import finished, judged

from dnge_compress.core.precision import has_bfloat16

SEEDS = (0, 1, 2)
BOOK_TOKENS = 1_048_576  # of real text: twelve minutes of two cores that have no instructions for bfloat16
CHARACTERS_PER_TOKEN = 4.2
# All weights, which train in float32 otherwise, at half the speed where the processor has instructions for bfloat16.
WHOLE = ["~lora", f"train.bf16={'true' if has_bfloat16() else 'false'}"]
# More text: without scores, repair and a teacher, the same would take fewer minutes than ours.
RIVAL = ["scorer=magnitude", "repair.compensate=none", "~distill"]
# Recipe of ours or a rival's, the texts it learns from, and of books how many times BOOK_TOKENS. Every arm finds its
# learning rate by the same trials.
ARMS: dict[str, tuple[list[str], str, float]] = {
    "prune-recover on its own samples": ([], "sampled", 1),
    "prune-recover on real books": ([], "books", 1),
    "prune-recover of all weights on real books": (WHOLE, "books", 1),
    # Less text than the rival has, for the minutes of scoring, repair and their trials.
    "prune-recover of all weights without a teacher on real books": ([*WHOLE, "~distill"], "books", 1.4),
    "prune-recover with uneven widths on its own samples": (["prune.uneven=true"], "sampled", 1),
    "prune-recover with uneven widths on real books": (["prune.uneven=true"], "books", 1),
    "prune-recover on both": ([], "both", 1),
    "without a teacher, on its own samples": (["~distill"], "sampled", 1),
    "without a teacher, on real books": (["~distill"], "books", 1),
    "magnitude, uniform LoRA on real books": (RIVAL, "books", 1.5),
    "magnitude, all weights on real books": ([*RIVAL, *WHOLE], "books", 2),
}
# What the README calls an arm: how the model was pruned, what of it was trained, and on what.
IN_README = {
    "prune-recover on its own samples": (
        "default, on its own text",
        "LoRA, the original teaches",
        "that the model wrote itself",
    ),
    "prune-recover on real books": ("default, on what it trains on", "LoRA, the original teaches", "of real books"),
    "prune-recover of all weights without a teacher on real books": (
        "default, on what it trains on",
        "all weights",
        "of real books",
    ),
    "magnitude, uniform LoRA on real books": ("magnitude", "LoRA", "of real books"),
    "magnitude, all weights on real books": ("magnitude", "all weights", "of real books"),
}
NOTES = (
    "Books that no job saw. LoRA at the cost of uniform rank 64. One epoch for all; what has no teacher reads",
    "more books, so that ours with all weights takes no longer than a rival. bookworm had seen six tenths of its",
    "training books once, so new ones teach it more than it knew. Every arm finds its learning rate by short",
    "trials. Minutes by the clock, one thread, another such job beside.",
)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The arms asked for in every seed: perplexities on books that no job saw, before, after pruning and after
    training; seconds."""
    found: dict[str, Any] = {}
    steps = [f"train.max_steps={options.steps}"] if options.steps else []
    for seed in SEEDS[: options.seeds]:
        for arm, (told, text, times) in arms_named(options.arms).items():
            books = options.work / f"books-{seed}-{times:g}.txt"
            if not books.is_file():
                books.write_text(excerpts(seed, round(times * BOOK_TOKENS)), encoding="utf-8")
            sources = {
                "sampled": "datasets=[{type: sampled}]",
                "books": f"datasets=[{{path: {books.absolute()}}}]",
                "both": f"datasets=[{{type: sampled}}, {{path: {books.absolute()}}}]",
            }
            out = options.work / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
            words = [*told, *steps, f"seed={seed}", f"calibration.seed={seed}", sources[text]]
            report = finished("jobs/prune-recover", out, words)
            seconds = sum(report.seconds.values())
            named = judged(out)
            tokens = report.rows["train tokens"]
            run = {"seed": seed, "seconds": seconds, "perplexity": named, "tokens": tokens}
            found.setdefault(arm, []).append(run)
            print(f"{arm}/{seed}: {named}, {seconds / 60:.1f} minutes", file=sys.stderr, flush=True)
    return found


def arms_named(parts: str) -> dict[str, tuple[list[str], str, float]]:
    """The arms whose names hold one of the parts, with semicolons between. Raises SystemExit for a part of none."""
    named = [part.strip() for part in parts.split(";")]
    for part in named:
        if not any(part in arm for arm in ARMS):
            raise SystemExit(f"--arms: '{part}' is in the name of no arm; they are: {'; '.join(ARMS)}")
    return {arm: told for arm, told in ARMS.items() if any(part in arm for part in named)}


def excerpts(seed: int, tokens: int) -> str:
    """Parts of the training books, from random places, of about so many tokens in all."""
    texts = pq.read_table(DATA / "books_train.parquet").column("text").to_pylist()
    generator = random.Random(seed)
    each = int(tokens * CHARACTERS_PER_TOKEN / len(texts))
    parts = []
    for text in texts:
        first = generator.randrange(max(1, len(text) - each))
        parts.append(text[first : first + each])
    return "\n\n".join(parts)


def table(recovery: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Every arm: perplexity after pruning and after training, over its seeds, and what that took."""
    rows = []
    for arm, runs in recovery.items():
        cells = [*(over_runs(runs, name) for name in ("pruned", "trained")), against_original(runs), tokens_of(runs)]
        rows.append([arm, *cells, str(len(runs)), f"{minutes_of(runs):.1f}"])
    changed = ["perplexity after pruning", "after recovery", "against the original"]
    head = ["arm", *changed, "tokens trained on", "seeds", "minutes"]
    lines = [f"30 % of the non-embedding parameters removed. Unpruned: {unpruned(recovery):.2f}.", ""]
    return [*lines, *markdown(head, rows), "", *against_ours(recovery), *NOTES]


def is_whole(recovery: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether everything that the README shows is measured in every seed."""
    return all(len(recovery.get(arm, ())) == len(SEEDS) for arm in IN_README)


def summary(recovery: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The arms that the README shows."""
    rows = [["nothing", "–", "–", "–", f"{unpruned(recovery):.2f}"]]
    for arm, (pruned, trained, text) in IN_README.items():
        runs = recovery[arm]
        took = f"{minutes_of(runs):.0f}"
        rows.append([pruned, trained, f"{tokens_of(runs)} tokens {text}", took, over_runs(runs, "trained")])
    return markdown(["pruned by", "trained", "on", "minutes", "perplexity"], rows)


def unpruned(recovery: dict[str, list[dict[str, Any]]]) -> float:
    """Perplexity of the original."""
    return float(next(iter(recovery.values()))[0]["perplexity"]["original"])


def over_runs(runs: list[dict[str, Any]], name: str) -> str:
    """Mean perplexity of an arm's models of that name, ± the standard deviation over its seeds."""
    values = [run["perplexity"][name] for run in runs]
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def against_original(runs: list[dict[str, Any]]) -> str:
    """How much higher the trained models' perplexity is."""
    after, before = (statistics.fmean(r["perplexity"][name] for r in runs) for name in ("trained", "original"))
    return f"{100 * (after / before - 1):+.1f} %"


def tokens_of(runs: list[dict[str, Any]]) -> str:
    """How many tokens an arm trained on."""
    return f"{statistics.fmean(run['tokens'] for run in runs) / 1e6:.2f} M"


def minutes_of(runs: list[dict[str, Any]]) -> float:
    """How long an arm's jobs took."""
    return statistics.fmean(run["seconds"] for run in runs) / 60


def against_ours(recovery: dict[str, list[dict[str, Any]]]) -> list[str]:
    """By how much more perplexity the rivals end with than we do on real books, seed by seed, in 95 % intervals."""
    ended = {arm: {run["seed"]: run["perplexity"]["trained"] for run in runs} for arm, runs in recovery.items()}
    on_books = [arm for arm in ended if ARMS[arm][1] == "books"]
    rivals = [arm for arm in on_books if arm.startswith("magnitude")]
    lines = []
    for rival, ours in itertools.product(rivals, (arm for arm in on_books if arm not in rivals)):
        seeds = ended[rival].keys() & ended[ours].keys()
        if len(seeds) > 1:
            mean, half = paired(*([ended[arm][seed] for seed in sorted(seeds)] for arm in (rival, ours)))
            interval = f"{mean - half:+.2f} to {mean + half:+.2f}, {len(seeds)} seeds"
            lines.append(f"- {rival}: {mean:+.2f} ({interval}) against {ours}")
    return [*lines, ""] if lines else []
