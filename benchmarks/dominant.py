"""Is one matrix enough? LoRA on a single down-projection against LoRA everywhere, each at its own best learning rate.

    python benchmarks/dominant.py     # goes on where it was; needs results/lora.json; writes results/dominant.{md,json}

DomLoRA (arXiv 2605.06183, 2026) reports that the energy of the first gradient (PAGE) is concentrated in one shallow
down-projection, that which one depends on the model and not on the task, and that an adapter there alone, with .7 % of
LoRA's parameters, is better than LoRA on every matrix. Bookworm is adapted to WikiText-2 as in results/lora.md, from
where the rows of uniform LoRA are taken.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from adapting import adapt, held_out_loss
from harness import RESULTS, markdown, paired, write
from lora import EXAMPLE, Bench, spread, wikitext
from lora_rows import BASELINE, BATCH, JUDGED, LENGTH, SETTINGS, STEPS, Kept, best_rate
from lora_tables import signed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, logging

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.planner import plan_of_weights
from dnge_compress.lora.sites import find_sites
from dnge_compress.recipes.lora_schema import Lora, LoraBudget, LoraRecipe
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.gradients import mean_square_gradients, real_labels, sampled_labels

SHARE = 0.007  # of vanilla LoRA's parameters, as published
VANILLA_RANK = 16
POINTS = 3  # of the grid of rates, to begin with
FIRST_RATE = 0.02
MEASURED_ROWS = 256  # of the new text, for the measure of gradients with data
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Arm:
    """Adapters on the sites whose names end so, within the published share."""

    name: str
    end: str


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    kept = Kept(RESULTS / "dominant.json")
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32).eval()
    sites = find_sites(model)
    train, judged = wikitext("valid"), spread(wikitext("test"), JUDGED)
    for name, measure in measures(model, sites, train).items():
        kept.measure(name, measure)
    layers = range(model.config.num_hidden_layers)
    arms = [Arm(f"down-projection {i}", f"layers.{i}.mlp.down_proj") for i in layers] + [Arm("all matrices", "")]
    for arm in arms:

        def run(lr: float, seed: int, arm: Arm = arm) -> dict[str, float]:
            weights = {site.path: float(site.path.endswith(arm.end)) for site in sites}
            plan = plan_of_weights(model, sites, weights, recipe(sites))
            config = plan.lora_config("CAUSAL_LM")
            trained = adapt(model, config, train, lr=lr, steps=STEPS, batch=BATCH, seed=seed)
            found = {"loss": held_out_loss(trained, judged), "params": float(plan.params)}
            return found | {"adapters": float(sum(a.rank > 0 for a in plan.adapters))}

        tuned(kept, arm.name, run, options.seeds)
    publish(kept.rows, arms, options.seeds)


def recipe(sites: Sequence[Site]) -> LoraRecipe:
    """The published share of vanilla LoRA's parameters."""
    params = math.ceil(SHARE * VANILLA_RANK * sum(site.price for site in sites))
    return LoraRecipe(lora=Lora(budget=LoraBudget(trainable_params=params)))


def tuned(kept: Kept, name: str, run: Callable[[float, int], dict[str, float]], seeds: int) -> None:
    """Rates that double, more of them until the best is inside; then the best with the other seeds."""
    rates = [FIRST_RATE * 2**i for i in range(POINTS)]
    while True:
        losses = [kept.measure(f"{name}|{lr:g}|0", lambda lr=lr: run(lr, 0))["loss"] for lr in rates]
        best = min(range(len(rates)), key=losses.__getitem__)
        if 0 < best < len(rates) - 1:
            break
        rates = [rates[0] / 2, *rates] if best == 0 else [*rates, rates[-1] * 2]
    for seed in range(1, seeds):
        kept.measure(f"{name}|{rates[best]:g}|{seed}", lambda seed=seed: run(rates[best], seed))


def measures(model: nn.Module, sites: Sequence[Site], train: Tensor) -> dict[str, Callable[[], dict[str, float]]]:
    """PAGE of every site, up to a factor, by what is known: the expected squared gradient of an adapter's second
    matrix, whose first one begins with variance 1 / (3 inputs)."""
    params = [site.weight for site in sites]

    def page(found: dict[str, float]) -> dict[str, float]:
        return {site.path: found[site.weight] * site.outputs for site in sites}

    def without() -> dict[str, float]:
        own = [part for batch in synthesize(model, Calibration(), None) for part in in_batches(batch["input_ids"])]
        return page(mean_square_gradients(model, params, own, sampled_labels(0)))

    def given() -> dict[str, float]:
        rows = in_batches(spread(train, MEASURED_ROWS))
        return page(mean_square_gradients(model, params, rows, real_labels(0)))

    return {"no data": without, "the new text": given}


def in_batches(ids: Tensor) -> list[dict[str, Tensor]]:
    """Batches of as many rows as a step of the training has."""
    return [{"input_ids": part} for part in ids.split(BATCH)]


def best_rows(rows: Rows, name: str, seeds: int) -> tuple[float, list[dict[str, float]]]:
    """The rate that was best at seed 0, and its rows by seed."""
    tried = {
        float(key.split("|")[1]): row["loss"]
        for key, row in rows.items()
        if key.startswith(f"{name}|") and key.endswith("|0")
    }
    lr = min(tried, key=tried.__getitem__)
    return lr, [rows[f"{name}|{lr:g}|{seed}"] for seed in range(seeds)]


def uniform_rows(seeds: int) -> dict[str, tuple[float, list[dict[str, float]]]]:
    """Uniform LoRA at the rate that results/lora.json has it best; seeds that are missing there are measured."""
    kept = Kept(RESULTS / "lora.json")
    found = {}
    for setting in SETTINGS:
        if not setting.is_pruned:
            lr = best_rate(kept, setting, BASELINE)
            bench = Bench(setting, kept)
            own = [bench.row(BASELINE, lr, seed) for seed in range(seeds)]
            found[f"all matrices, rank {setting.rank}"] = lr, own
    return found


def publish(rows: Rows, arms: Sequence[Arm], seeds: int) -> None:
    """results/dominant.md."""
    found = {arm.name: best_rows(rows, arm.name, seeds) for arm in arms} | uniform_rows(seeds)
    vanilla = found[f"all matrices, rank {VANILLA_RANK}"][1]
    losses = {name: [row["loss"] for row in own] for name, (_, own) in found.items()}
    ends = {arm.name: arm.end for arm in arms if arm.end}
    totals = {name: sum(rows[name].values()) for name in ("no data", "the new text")}
    body = []
    for name in sorted(found, key=lambda name: statistics.fmean(losses[name])):
        lr, own = found[name]
        energies = [
            f"{sum(v for path, v in rows[k].items() if path.endswith(ends[name])) / total:.1%}" if name in ends else ""
            for k, total in totals.items()
        ]
        cells = (f"{own[0]['params']:,.0f}", f"{own[0]['params'] / vanilla[0]['params']:.1%}", f"{lr:g}")
        mean, half = paired(losses[name], losses[f"all matrices, rank {VANILLA_RANK}"])
        difference = "" if own is vanilla else f"{signed(mean)} ± {half:.4f}"
        body.append((name, *cells, f"{statistics.fmean(losses[name]):.4f}", difference, *energies))
    head = (
        "adapters on", "parameters", "share", "best rate", "loss", f"to rank {VANILLA_RANK} everywhere",
        "energy, no data", "energy, the new text",
    )  # fmt: skip
    tops = [max(rows[k], key=rows[k].__getitem__) for k in totals]
    said = "; ".join(f"{k}: {top}, {rows[k][top] / totals[k]:.1%}" for k, top in zip(totals, tops, strict=True))
    lines = [
        *(__doc__ or "").split("\n\n")[2:],
        f"{STEPS} steps of {BATCH} × {LENGTH} tokens, AdamW, warm-up and cosine, alpha = 2 × rank; loss in nats per "
        f"token on {JUDGED * LENGTH:,} held-out tokens, mean of {seeds} seeds. Rates double from one to the next until "
        "the best is inside; differences are paired by seed, with 95 % intervals.",
        "",
        *markdown(head, body),
        "",
        f"The matrix of all {len(rows['no data'])} with most energy, and its share: {said}.",
    ]
    write("dominant", "One matrix or all", lines)


if __name__ == "__main__":
    main()
