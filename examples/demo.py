"""Compress the model that ships with the project, offline, and show what it cost: `python examples/demo.py`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network, and a wrong path should say so at once

import torch
from perplexity import encode, perplexity
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, logging

from dnge_compress import compress
from dnge_compress.report.speeds import seconds_of

ROOT = Path(__file__).resolve().parents[1]
BOOKWORM = ROOT / "examples" / "bookworm"
TEXT_CHARACTERS_PER_PART, PARTS = 2_000, 10  # the held-out text is ten excerpts of like length; a part of each
TIMED_TOKENS, TIMED_ROWS = 256, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=0.3, help="of the non-embedding parameters to remove")
    parser.add_argument("--scorer", default="encoder", help="encoder (default), obs, magnitude or random")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bookworm-small")
    args = parser.parse_args()
    logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(BOOKWORM)
    text = sample((BOOKWORM / "heldout.txt").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(BOOKWORM, dtype=torch.float32).eval()

    print(f"Compressing bookworm by {args.ratio:.0%}, without data; two minutes or so …", flush=True)
    started = time.perf_counter()
    small = compress(model, ratio=args.ratio, scorer=args.scorer)
    seconds = time.perf_counter() - started
    print(small.dnge.report)
    small.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    # Ordinary transformers from here on: nothing of ours is needed to load or run the result; ours only takes the time.
    again = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    same = same_logits(small, again, encode(tokenizer, text)[None, :64])
    old_speed, new_speed, noise = speeds(model, again)
    rows = (
        ("perplexity", f"{perplexity(model, tokenizer, text):.2f}", f"{perplexity(again, tokenizer, text):.2f}"),
        ("parameters", f"{model.num_parameters():,}", f"{again.num_parameters():,}"),
        ("megabytes in float32", f"{megabytes(model):.1f}", f"{megabytes(again):.1f}"),
        (f"tokens per second ±{noise:.0%}", f"{old_speed:,.0f}", f"{new_speed:,.0f}"),
    )
    print(f"{'':24}{'before':>12}{'after':>12}")
    for name, before, after in rows:
        print(f"{name:24}{before:>12}{after:>12}")
    print(f"\nPerplexity is on {len(text.encode()):,} bytes of books that the model has never seen.")
    print(f"It took {seconds:.0f} s. Saved to {args.out}; reloaded by plain transformers, {same}.")


def sample(text: str) -> str:
    """About twenty kilobytes of a long text, from all over it."""
    stride = len(text) // PARTS
    return "\n\n".join(text[i * stride : i * stride + TEXT_CHARACTERS_PER_PART] for i in range(PARTS))


def speeds(old: PreTrainedModel, new: PreTrainedModel) -> tuple[float, float, float]:
    """Tokens per second of a forward pass of each, measured in turn, and by which share two measurements may differ."""
    ids = torch.randint(10, old.config.vocab_size, (TIMED_ROWS, TIMED_TOKENS), generator=torch.Generator())
    (before, after), noise = seconds_of([old, new], {"input_ids": ids})
    return ids.numel() / before, ids.numel() / after, noise


def same_logits(one: PreTrainedModel, other: PreTrainedModel, ids: torch.Tensor) -> str:
    """Say whether two models answer alike; a demo that reloads another network must not end well."""
    with torch.inference_mode():
        gap = (one(input_ids=ids).logits - other(input_ids=ids).logits).abs().max().item()
    if gap > 1e-4:
        raise SystemExit(f"the reloaded model differs from the one saved: logits by {gap:.2g}")
    return f"logits equal to {gap:.0e}" if gap else "logits equal to the last bit"


def megabytes(model: PreTrainedModel) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6


if __name__ == "__main__":
    main()
