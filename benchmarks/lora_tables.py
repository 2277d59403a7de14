"""The tables of `lora.py`."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from harness import markdown, paired, write
from lora_rows import BASELINE, BATCH, JUDGED, LENGTH, OURS, SEEDS, SHARES, STEPS, Kept, Setting, best_rate, key_of


def publish(introduction: str, kept: Kept, settings: Sequence[Setting]) -> None:
    """Write results/lora.md."""
    lines = [introduction, ""]
    lines += [
        f"{STEPS} steps of {BATCH} × {LENGTH} tokens, AdamW, warm-up and cosine, alpha = 2 × rank; loss in nats per "
        f"token on {JUDGED * LENGTH:,} held-out tokens, mean of {SEEDS} seeds. Differences are to another arm, paired "
        "by seed, with 95 % intervals; below zero is better. Seeds change the adapters' start and the order of data, "
        "not the placement; three permutations stand for the chance in those.",
        "",
    ]
    for setting in settings:
        lines += table(kept, setting)
    write("lora", "LoRA placement", lines)


def table(kept: Kept, setting: Setting) -> list[str]:
    """One setting as Markdown."""
    before = kept.rows[key_of(setting, "no adapter", 0.0, 0)]

    def rows(arm: str, share: float = 1.0) -> list[dict[str, float]]:
        lr = best_rate(kept, setting, arm)
        return [kept.rows[key_of(setting, arm, lr, seed, share)] for seed in range(SEEDS)]

    def losses(arm: str, share: float = 1.0) -> list[float]:
        return [row["loss"] for row in rows(arm, share)]

    def difference(arm: str, other: str) -> str:
        if arm == other:
            return ""
        mean, half = paired(losses(arm), losses(other))
        return f"{signed(mean)} ± {half:.4f}"

    ordered = sorted(setting.arms, key=lambda arm: statistics.fmean(losses(arm)))
    other = "WikiText-2" if setting.is_pruned else "books (forgetting)"
    head = ("placement", "parameters", "best rate", "loss", "to uniform", "to the encoder", other, "without adapter")
    body = [
        (
            f"**{arm}**" if arm in (OURS, BASELINE) else arm,
            f"{rows(arm)[0]['params']:,.0f}",
            f"{best_rate(kept, setting, arm):g}",
            f"{statistics.fmean(losses(arm)):.4f}",
            difference(arm, BASELINE),
            difference(arm, OURS),
            f"{statistics.fmean(r['other'] for r in rows(arm)) - before['other']:+.3f}".replace("-", "−"),
            f"{rows(arm)[0]['without']:.0f}",
        )
        for arm in ordered
    ]
    lines = [f"## {setting.title}", "", f"Before: {before['loss']:.4f}.", "", *markdown(head, body), ""]
    permuted = [arm for arm in setting.arms if arm.startswith("encoder's ranks permuted")]
    if len(permuted) > 1:
        pooled = [statistics.fmean(values) for values in zip(*(losses(a) for a in permuted), strict=True)]
        mean, half = paired(losses(OURS), pooled)
        lines += [
            f"The encoder against the mean of {len(permuted)} permutations of its ranks: {signed(mean)} ± {half:.4f}.",
            "",
        ]
    if key_of(setting, OURS, best_rate(kept, setting, OURS), 0, SHARES[0]) in kept.rows:
        curve = [(share, statistics.fmean(losses(OURS, share))) for share in (*SHARES, 1.0)]
        shown = ", ".join(f"{loss:.4f} at {share:.0%}" for share, loss in curve)
        wanted = statistics.fmean(losses(BASELINE))
        lines += [
            f"Ours with fewer parameters: {shown}; uniform has {wanted:.4f} at 100 %. {needed(curve, wanted)}",
            "",
        ]
    return lines


def signed(value: float) -> str:
    """A difference, with a proper minus."""
    return f"{value:+.4f}".replace("-", "−")


def needed(curve: Sequence[tuple[float, float]], wanted: float) -> str:
    """What share of the parameters reaches a loss, between the measured ones on a log scale."""
    if curve[0][1] <= wanted:
        return f"It needs less than {curve[0][0]:.0%} of the parameters for that."
    for (low, above), (high, below) in itertools.pairwise(curve):
        if below <= wanted < above:
            part = (above - wanted) / (above - below)
            return f"It needs {math.exp(math.log(low) + part * math.log(high / low)):.0%} of the parameters for that."
    return "It doesn't reach that with as many parameters."
