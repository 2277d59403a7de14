"""Is one matrix enough? LoRA on a single down-projection against LoRA everywhere, each at its own best learning rate.

    python benchmarks/dominant.py      # half an hour of one core; goes on where it was; writes results/dominant.{md,json}

DomLoRA (arXiv 2605.06183, 2026) reports that the energy of the first gradient (PAGE) is concentrated in one shallow
down-projection, that which one depends on the model and not on the task, and that an adapter there alone, with .7 % of
LoRA's parameters, is better than LoRA on every matrix. Bookworm is adapted to WikiText-2 as in results/lora.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from adapting import adapt, held_out_loss
from harness import RESULTS, markdown, write
from lora import (
    BATCH,
    EXAMPLE,
    JUDGED,
    LENGTH,
    POINTS,
    REMEMBERED,
    STEPS,
    Kept,
    books,
    paired,
    signed,
    spread,
    wikitext,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, logging

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.planner import plan_of_weights
from dnge_compress.lora.sites import find_sites
from dnge_compress.recipes.lora_schema import Lora, LoraBudget, LoraRecipe
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.gradients import mean_square_gradients, real_labels, sampled_labels

SEEDS = 3
SHARE = 0.007  # of vanilla LoRA's parameters, as published
VANILLA_RANK = 16
MAX_RANK = 256
VANILLA = "all matrices, 100 %"
MEASURED_ROWS = 256  # of the new text, for the measures of gradients with data
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Arm:
    """Sites by the end of their names, a share of vanilla LoRA's parameters, and where the grid of rates begins."""

    name: str
    ends: tuple[str, ...]
    share: float
    first_rate: float


def arms(layers: int) -> list[Arm]:
    """Every single down-projection at the published share and at a tenth; rivals at the same, and the whole."""
    names = {f"layers.{i}.mlp.down_proj": f"down-projection {i}" for i in range(layers)}
    found = [Arm(f"{name}, .7 %", (end,), SHARE, 0.01) for end, name in names.items()]
    found += [
        Arm("all matrices, .7 %", ("",), SHARE, 0.01),
        Arm("all matrices, 10 %", ("",), 0.1, 0.005),
        Arm(VANILLA, ("",), 1.0, 0.00125),
    ]
    return found + [Arm(f"{name}, 10 %", (end,), 0.1, 0.005) for end, name in names.items()]


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, default=RESULTS / "dominant.json")
    parser.add_argument("--arms", type=int, help="the first so many of them")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    kept = Kept(options.kept)
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32).eval()
    sites = find_sites(model)
    train, judged = wikitext("valid"), spread(wikitext("test"), JUDGED)
    remembered = spread(books("valid"), REMEMBERED)
    before = kept.measure(
        "before", lambda: {"loss": held_out_loss(model, judged), "other": held_out_loss(model, remembered)}
    )
    energies = {name: kept.measure(name, run) for name, run in measures(model, sites, train).items()}
    chosen = arms(model.config.num_hidden_layers)[: options.arms]
    for arm in chosen:

        def run(lr: float, seed: int, arm: Arm = arm) -> dict[str, float]:
            plan = plan_of_weights(model, sites, weights(arm, sites), recipe(arm, sites))
            config = plan.lora_config("CAUSAL_LM")
            trained = adapt(model, config, train, lr=lr, steps=STEPS, batch=BATCH, seed=seed)
            found = {"loss": held_out_loss(trained, judged), "other": held_out_loss(trained, remembered)}
            return found | {"params": plan.params, "adapters": sum(a.rank > 0 for a in plan.adapters)}

        tuned(kept, arm, run)
    publish(kept.rows, chosen, before, energies)


def weights(arm: Arm, sites: list[Site]) -> dict[str, float]:
    """Equal on the arm's sites, none elsewhere."""
    return {site.path: float(site.path.endswith(arm.ends)) for site in sites}


def recipe(arm: Arm, sites: list[Site]) -> LoraRecipe:
    """The arm's budget."""
    params = math.ceil(arm.share * VANILLA_RANK * sum(site.price for site in sites))
    return LoraRecipe(lora=Lora(budget=LoraBudget(trainable_params=params), max_rank=MAX_RANK))


def tuned(kept: Kept, arm: Arm, run: Callable[[float, int], dict[str, float]]) -> None:
    """Rates that double, more of them until the best is inside; then the best with the other seeds."""
    rates = [arm.first_rate * 2**i for i in range(POINTS)]
    while True:
        losses = [kept.measure(f"{arm.name}|{lr:g}|0", lambda lr=lr: run(lr, 0))["loss"] for lr in rates]
        best = min(range(len(rates)), key=losses.__getitem__)
        if 0 < best < len(rates) - 1:
            break
        rates = [rates[0] / 2, *rates] if best == 0 else [*rates, rates[-1] * 2]
    for seed in range(1, SEEDS):
        kept.measure(f"{arm.name}|{rates[best]:g}|{seed}", lambda seed=seed: run(rates[best], seed))


def measures(model: nn.Module, sites: list[Site], train: Tensor) -> dict[str, Callable[[], dict[str, float]]]:
    """PAGE of every site, up to a factor, by what is known: the expected squared gradient of an adapter's second
    matrix, whose first one begins with variance 1 / (3 inputs)."""
    picked = [{"input_ids": part} for part in spread(train, MEASURED_ROWS).split(BATCH)]
    params = [site.weight for site in sites]

    def page(found: dict[str, float]) -> dict[str, float]:
        return {site.path: found[site.weight] * site.outputs for site in sites}

    def without() -> dict[str, float]:
        batches = [part for b in synthesize(model, Calibration(), None) for part in in_rows(b["input_ids"])]
        return page(mean_square_gradients(model, params, batches, sampled_labels(0)))

    return {
        "no data": without,
        "the new text": lambda: page(mean_square_gradients(model, params, picked, real_labels(0))),
    }


def in_rows(ids: Tensor) -> list[dict[str, Tensor]]:
    """Batches of as many rows as training has."""
    return [{"input_ids": part} for part in ids.split(BATCH)]


def best_rows(rows: Rows, arm: Arm) -> tuple[float, list[dict[str, float]]]:
    """The rate that was best at seed 0, and its rows by seed."""
    tried = {
        float(k.split("|")[1]): row["loss"] for k, row in rows.items() if k.startswith(f"{arm.name}|") and k[-1] == "0"
    }
    lr = min(tried, key=tried.__getitem__)
    return lr, [rows[f"{arm.name}|{lr:g}|{seed}"] for seed in range(SEEDS)]


def publish(rows: Rows, chosen: list[Arm], before: dict[str, float], energies: dict[str, dict[str, float]]) -> None:
    """results/dominant.md."""
    losses = {arm.name: [row["loss"] for row in best_rows(rows, arm)[1]] for arm in chosen}
    body = []
    for arm in sorted(chosen, key=lambda a: statistics.fmean(losses[a.name])):
        lr, found = best_rows(rows, arm)
        to_vanilla = paired(losses[arm.name], losses[VANILLA]) if VANILLA in losses and arm.name != VANILLA else None
        body.append(
            (
                arm.name,
                f"{found[0]['params']:,.0f}",
                f"{found[0]['adapters']:.0f}",
                f"{lr:g}",
                f"{statistics.fmean(losses[arm.name]):.4f}",
                f"{signed(to_vanilla[0])} ± {to_vanilla[1]:.4f}" if to_vanilla else "",
                signed(statistics.fmean(row["other"] for row in found) - before["other"]),
            )
        )
    head = (
        "adapters on",
        "parameters",
        "adapters",
        "best rate",
        "loss",
        "to all matrices, 100 %",
        "books (forgetting)",
    )
    lines = [
        *__doc__.strip().split("\n\n")[2:],
        "",
        f"{STEPS} steps of {BATCH} × {LENGTH} tokens, AdamW, warm-up and cosine, alpha = 2 × rank; loss in nats per token on "
        f"{JUDGED * LENGTH:,} held-out tokens, mean of {SEEDS} seeds; 100 % is uniform rank {VANILLA_RANK}. Rates double from "
        "one to the next until the best is inside; differences are paired by seed, with 95 % intervals. Shares are of "
        "vanilla LoRA's parameters.",
        "",
        f"Before: {before['loss']:.4f}.",
        "",
        *markdown(head, body),
        "",
        "## Does the energy of the first gradient find the best one?",
        "",
        *energy_table(rows, chosen, energies),
    ]
    write("dominant", "One matrix or all", lines)


def energy_table(rows: Rows, chosen: list[Arm], energies: dict[str, dict[str, float]]) -> list[str]:
    """Shares of PAGE by down-projection, beside what an adapter there alone reaches."""
    single = [arm for arm in chosen if len(arm.ends) == 1 and arm.ends != ("",)]
    ends = list(dict.fromkeys(arm.ends[0] for arm in single))
    names = list(energies)
    body = []
    for end in ends:
        shares = [sum(v for p, v in energies[n].items() if p.endswith(end)) / sum(energies[n].values()) for n in names]
        found = [statistics.fmean(r["loss"] for r in best_rows(rows, arm)[1]) for arm in single if arm.ends == (end,)]
        body.append((end, *(f"{s:.1%}" for s in shares), *(f"{loss:.4f}" for loss in found)))
    tops = [max(energies[n], key=energies[n].__getitem__) for n in names]
    shares = list(dict.fromkeys(f"{arm.share:.1%}" for arm in single))
    head = ("matrix", *(f"energy, {n}" for n in names), *(f"loss at {s}" for s in shares))
    said = "; ".join(
        f"with {n}: {top}, {energies[n][top] / sum(energies[n].values()):.1%}"
        for n, top in zip(names, tops, strict=True)
    )
    return [*markdown(head, body), "", f"The matrix of all {len(energies[names[0]])} with most energy: {said}."]


if __name__ == "__main__":
    main()
