"""Networks that nobody here trained: an equal share of the feed-forward neurons or channels of every layer goes.

    python benchmarks/independent.py [--only MiniLM,ResNet] [--seeds 3]     # two hours of a core; can be stopped

Measure: KL divergence from the whole network's answers on real inputs that nothing was calibrated on, in nats (for
MiniLM, which has no classes, half the squared error over the variance; its cosine is in results/minilm.md). Rivals have
256 real samples. Their repair is the one-shot ridge refit on real moments, as GRAIL does it, ours is the default's.
Writes results/independent.{md,json}.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache, partial

import torch
from harness import Rows, Source, Table, keep_rows, kept_rows, markdown, over_seeds, put_in_readme
from scipy.stats import binomtest
from strangers import BEGUN, STRANGERS, Stranger
from torch import nn
from transformers import logging

from dnge_compress.plans.expected import expected, on_held_out
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.comparison import Damage
from dnge_compress.signals.divergence import divergence, outputs_of
from dnge_compress.signals.doubts import kind_of_inputs
from dnge_compress.signals.inference import has_logits, inference_mode_of

RATIOS = (0.125, 0.25, 0.375, 0.5)
OURS = "default"
FREE = (("encoder", OURS), ("magnitude", "lstsq"), ("magnitude", "none"))
REAL = (
    ("encoder", OURS),
    ("flap", "bias"),
    ("flap", "lstsq"),
    ("fisher", "lstsq"),
    ("magnitude", "lstsq"),
    ("wanda", "lstsq"),
)
FORESEEN = "independent_expected"  # where damage on calibration inputs is kept beside the real one
HELD_OUT = "held out"  # what damage was measured on, where no fit has seen it
BEFORE = ("encoder", "lstsq")  # the default of the release before, on its calibration inputs
PROMPTED = ("encoder", OURS)  # where users know with what every text begins
DATA = {
    "synthetic": "none",
    "real": "256 real",
    "before": "none, as 0.1 made them",
    "prompted": "none, begun as its users do",
}


# What the README calls the networks.
IN_README = {
    "stories260k (Llama)": "a Llama on simple stories (260 k)",
    "ResNet-20": "ResNet-20, CIFAR-10",
    "ResNet-56": "ResNet-56, CIFAR-10",
    "Sapiens (RoBERTa)": "RoBERTa on antibodies (Sapiens)",
    "IgLM-S (GPT-2)": "GPT-2 on antibodies (IgLM-S)",
    "EfficientNet-Lite0": "EfficientNet-Lite0 on enlarged photographs",
    "MiniLM (BERT)": "MiniLM (half the squared error over the variance)",
}
README_COLUMNS = {
    "default, no data": ("encoder", OURS, DATA["synthetic"]),
    "magnitude, no data": ("magnitude", "lstsq", DATA["synthetic"]),
    "FLAP, 256 real": ("flap", "lstsq", DATA["real"]),
    "default, 256 real": ("encoder", OURS, DATA["real"]),
}
README_RATIOS = (0.25, 0.5)


def main() -> None:
    """Run all arms on all strangers, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of names, with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    table = Table("independent", "Networks by others: KL divergence on real inputs, in nats", RATIOS)
    for name, open_it in STRANGERS.items():
        if any(part in name for part in options.only.split(",")):
            measure(table, name, open_it, options.seeds)
    table.rows = dict(sorted(table.rows.items(), key=lambda item: _place(item[0])))
    table.notes += [*summary(table)]
    table.write(("network", "selection", "repair", "data"))
    if all((name, *arm) in table.rows for name in IN_README for arm in README_COLUMNS.values()):
        put_in_readme("strangers", in_readme(table.rows))


def measure(table: Table, name: str, open_it: Callable[[], Stranger], seeds: int) -> None:
    """All arms on one stranger that are not measured yet."""
    measured = _arms() | ({"prompted": (PROMPTED,)} if name in BEGUN else {})
    wanted = [(name, s, r, DATA[d]) for d, arms in measured.items() for s, r in arms]
    if all(table.has(wanted, seed) for seed in range(seeds)):
        return
    stranger = open_it()
    judge = judged_by(stranger)
    for seed in range(seeds):
        for kind, arms in measured.items():
            keys = [(name, *arm, DATA[kind]) for arm in arms]
            if table.has(keys, seed):
                continue
            made = cache(partial(source_of, stranger, kind, seed))
            for key, (scorer, repair) in zip(keys, arms, strict=True):
                source, damages = made(holds_out=kind == "real" and repair == OURS), list[Damage]()

                def make(ratio: float, scorer=scorer, repair=repair, source=source, damages=damages) -> nn.Module:
                    small = source.prune(scorer, repair, "prune/neurons", ratio)
                    damages.append(source.damage)
                    return small

                table.measure(key, make, judge, seed)
                if repair == OURS and damages:
                    inputs = kind_of_inputs(
                        stranger.model, source.context.batches, Calibration(), stranger.example, kind == "real"
                    )
                    row = {
                        "row": [*key, seed],
                        "inputs": HELD_OUT if source.context.held_out else inputs,
                        "measured": [asdict(damage) for damage in damages],
                        "real": table.rows[key][seed],
                    }
                    keep_rows(FORESEEN, [*(r for r in kept_rows(FORESEEN) if r["row"] != row["row"]), row])


def source_of(stranger: Stranger, kind: str, seed: int, *, holds_out: bool) -> Source:
    """A stranger with inputs of a kind. With `holds_out` some real samples are kept from the fits, as `compress` does:
    that takes them from ours; rivals fit on all of them."""
    if kind == "prompted":
        return _begun(stranger, seed)
    data = stranger.real(seed) if kind == "real" else None
    return Source(
        stranger.model, data=data, seed=seed, example=stranger.example, is_plain=kind == "before", holds_out=holds_out
    )


def _place(key: tuple[str, ...]) -> tuple[int, int, int]:
    """Where a row stands: by network, data, and arm."""
    name, scorer, repair, data = key
    kind = next(k for k, told in DATA.items() if told == data)
    arms = [*_arms().get(kind, (PROMPTED,))]
    return [*STRANGERS].index(name), [*DATA].index(kind), arms.index((scorer, repair))


def _begun(stranger: Stranger, seed: int) -> Source:
    """Nothing but what texts begin with, as `calibration.prompts` gives it."""
    assert stranger.begun is not None
    model, prompt = copy.copy(stranger.model), stranger.begun[1]
    model.name_or_path = stranger.begun[0]
    return Source(model, seed=seed, prompts=(prompt,))


def _arms() -> dict[str, Iterable[tuple[str, str]]]:
    return {"synthetic": FREE, "real": REAL, "before": (BEFORE,)}


def judged_by(stranger: Stranger) -> Callable[[nn.Module], float]:
    """Mean divergence from the whole network's answers."""
    logits = has_logits(stranger.model)
    with torch.no_grad(), inference_mode_of(stranger.model):
        wanted = [outputs_of(stranger.model, batch) for batch in stranger.judged]

    def judge(small: nn.Module) -> float:
        with torch.no_grad(), inference_mode_of(small):
            found = [
                (float(divergence(outputs_of(small, batch), answer, logits)), answer[..., 0].numel())
                for batch, answer in zip(stranger.judged, wanted, strict=True)
            ]
        return sum(d * n for d, n in found) / sum(n for _, n in found)

    return judge


def summary(table: Table) -> list[str]:
    """How much of the gap to real samples is closed, and how often who is better."""
    logs: dict[tuple[str, ...], list[float]] = {
        key: [math.log(max(statistics.mean(row[i] for row in rows.values()), 1e-9)) for i in range(len(RATIOS))]
        for key, rows in table.rows.items()
    }
    names = [n for n in STRANGERS if all((n, *arm, DATA[d]) in logs for d, arms in _arms().items() for arm in arms)]

    def of(name: str, arm: tuple[str, str], kind: str) -> list[float]:
        return logs[(name, *arm, DATA[kind])]

    ours, lines = (
        ("encoder", OURS),
        ["Share of the gap closed, in log damage: (before − now) / (before − 256 real samples, today's default)."],
    )
    rows = []
    for name in names:
        before, now, real = of(name, BEFORE, "before"), of(name, ours, "synthetic"), of(name, ours, "real")
        cells = [f"{(b - n) / (b - r):.0%}" if b - r > 0.02 else "–" for b, n, r in zip(before, now, real, strict=True)]
        gap, closed = (
            sum(b - r for b, r in zip(before, real, strict=True)),
            sum(b - n for b, n in zip(before, now, strict=True)),
        )
        rows.append([name, *cells, f"{closed / gap:.0%}" if gap > 0.05 else "–"])
    lines += ["", *markdown(["network", *(f"{r:.1%}" for r in RATIOS), "all"], rows), ""]
    lines += [foreseen(names), ""]
    for kind, rivals in (
        ("synthetic", [(a, "real") for a in REAL if a != ours] + [(a, "synthetic") for a in FREE[1:]]),
        ("real", [(a, "real") for a in REAL if a != ours]),
    ):
        for rival, with_what in rivals:
            apart = {n: [a - b for a, b in zip(of(n, ours, kind), of(n, rival, with_what), strict=True)] for n in names}
            if not apart:
                continue
            cells = [d for found in apart.values() for d in found]
            means = [statistics.mean(found) for found in apart.values()]
            ahead = sum(mean < 0 for mean in means)
            sure = binomtest(ahead, len(apart)).pvalue
            lines.append(
                f"- default, {DATA[kind]} data, against {rival[0]} + {rival[1]}, {DATA[with_what]} data: better on "
                f"{ahead} of {len(apart)} networks (sign test p = {sure:.2g}), in {sum(d < 0 for d in cells)} of "
                f"{len(cells)} cells, {over_seeds(means, 2)} log damage (95 % interval over networks)"
            )
    return lines


def in_readme(rows: Rows) -> list[str]:
    """The README's table: mean damage over seeds, the lowest of each ratio in bold, and how often plans were right."""
    places = [RATIOS.index(ratio) for ratio in README_RATIOS]
    lines = []
    for name, called in IN_README.items():
        found = [[_mean(rows[(name, *arm)], i) for i in places] for arm in README_COLUMNS.values()]
        least = [min(column) for column in zip(*found, strict=True)]
        lines.append([called, *(" / ".join(map(_damage, values, least)) for values in found)])
        if (begun := (name, *PROMPTED, DATA["prompted"])) in rows:
            cell = " / ".join(_damage(_mean(rows[begun], i)) for i in places)
            lines.append(["the same, begun with its control tokens (`calibration.prompts`)", cell, "", "", ""])
    return [*markdown(["", *README_COLUMNS], lines), "", foreseen([*IN_README])]


def _damage(value: float, least: float | None = None) -> str:
    return f"**{value:#.3g}**" if value == least else f"{value:#.3g}"


def _mean(values: dict[int, list[float]], place: int) -> float:
    return statistics.mean(row[place] for row in values.values())


def foreseen(names: Sequence[str]) -> str:
    """How often the real damage of these networks lay in the band that a plan foretells."""
    counts = {"synthetic": [0, 0], "real": [0, 0]}
    for row in kept_rows(FORESEEN):
        if row["row"][0] not in names or row["row"][3] == DATA["prompted"]:
            continue
        for measured, real in zip(row["measured"], row["real"], strict=True):
            damage = Damage(**measured)
            band = on_held_out(damage) if row["inputs"] == HELD_OUT else expected(damage.nats, row["inputs"])
            if band is not None:
                kind = "real" if row["row"][3] == DATA["real"] else "synthetic"
                counts[kind][0] += band.low <= real <= band.high
                counts[kind][1] += 1
    free, real = (f"{inside} of {n}" for inside, n in counts.values())
    found = f"in {free} plans without data, in {real} with 256 samples"
    return f"The damage on real inputs lies in the plan's 80 % band {found}."


if __name__ == "__main__":
    main()
