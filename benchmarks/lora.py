"""Where should LoRA go? Placements at equal trainable parameters, each at its own best learning rate, five seeds.

    python benchmarks/lora.py          # about an hour on one core; writes results/lora.{md,json}

Bookworm, a language model trained on books, is adapted to WikiText-2; its pruned copy is brought back on books. Every
arm of a setting has the same budget in parameters, the same start, order of data and steps; its learning rate is the
best of a grid of at least four that doubles from one to the next, and grows until the best one is inside. Differences
are paired by seed. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import warnings
from functools import cached_property, partial
from pathlib import Path

import torch
from adapting import adapt, held_out_loss, windows
from harness import DATA, RESULTS
from lora_rows import (
    ARMS,
    BATCH,
    JUDGED,
    LENGTH,
    MAX_RANK,
    OURS,
    POINTS,
    PRUNED,
    REMEMBERED,
    SEEDS,
    SETTINGS,
    SHARES,
    STEPS,
    Kept,
    Setting,
    best_rate,
    key_of,
)
from lora_tables import publish
from peft.helpers import KappaTuneSelector
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from dnge_compress import LoraPlan, compress
from dnge_compress.lora.adapters import Site
from dnge_compress.lora.place import graph_of
from dnge_compress.lora.placers import DAMPING, PlacingContext, weigh_by
from dnge_compress.lora.planner import plan_of_weights
from dnge_compress.lora.sites import find_sites
from dnge_compress.recipes.lora_schema import Lora, LoraBudget, LoraRecipe
from dnge_compress.recipes.schema import Calibration

EXAMPLE = Path(__file__).parents[1] / "examples" / "bookworm"


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kept", type=Path, default=RESULTS / "lora.json", help="rows measured so far; without it, all are"
    )
    parser.add_argument("--only", nargs="*", help="settings to run: tight, recovery, generous")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    kept = Kept(options.kept)
    chosen = [s for s in SETTINGS if not options.only or s.name in options.only]
    for setting in chosen:
        Bench(setting, kept).run()
    if SETTINGS[0] in chosen:
        Bench(SETTINGS[0], kept).run_shares()
    publish((__doc__ or "").strip().split("\n\n")[2].replace("\n", " "), kept, chosen)


class Bench:
    """One setting: its model, texts and plans, made when a row is missing."""

    def __init__(self, setting: Setting, kept: Kept) -> None:
        self.setting, self.kept = setting, kept

    def run(self) -> None:
        """Every arm over the learning rates, then the best over the seeds."""
        self.row("no adapter", 0.0, 0, 1.0)
        for arm in self.setting.arms:
            lrs = [self.setting.first_rate * 2**i for i in range(POINTS)]
            while True:
                losses = [self.row(arm, lr, 0)["loss"] for lr in lrs]
                best = min(range(len(lrs)), key=losses.__getitem__)
                if 0 < best < len(lrs) - 1:
                    break
                lrs = [lrs[0] / 2, *lrs] if best == 0 else [*lrs, lrs[-1] * 2]
            for seed in range(1, SEEDS):
                self.row(arm, lrs[best], seed)

    def run_shares(self) -> None:
        """Ours at smaller budgets, at the learning rate that was best for the whole one."""
        lr = best_rate(self.kept, self.setting, OURS)
        for share in SHARES:
            for seed in range(SEEDS):
                self.row(OURS, lr, seed, share)

    def row(self, arm: str, lr: float, seed: int, share: float = 1.0) -> dict[str, float]:
        """What an arm came to, measured if it isn't kept."""
        return self.kept.measure(
            key_of(self.setting, arm, lr, seed, share), lambda: self._measure(arm, lr, seed, share)
        )

    def _measure(self, arm: str, lr: float, seed: int, share: float) -> dict[str, float]:
        if arm == "no adapter":
            return {"loss": held_out_loss(self.model, self.judged), "other": held_out_loss(self.model, self.remembered)}
        plan = self._plan(arm, share)
        trained = adapt(
            self.model, plan.lora_config("CAUSAL_LM"), self.train, lr=lr, steps=STEPS, batch=BATCH, seed=seed
        )
        found = {"loss": held_out_loss(trained, self.judged), "other": held_out_loss(trained, self.remembered)}
        return found | {"params": plan.params, "without": sum(a.rank == 0 for a in plan.adapters)}

    def _plan(self, arm: str, share: float) -> LoraPlan:
        if arm not in self._weights:
            found = self._weigh(*ARMS[arm])
            is_undamped = "undamped" in arm
            self._weights[arm] = {path: w ** (1 / DAMPING) if is_undamped else w for path, w in found.items()}
        params = round(share * sum(s.price * self.setting.rank for s in self.sites))
        recipe = LoraRecipe(lora=Lora(budget=LoraBudget(trainable_params=params), max_rank=MAX_RANK))
        return plan_of_weights(self.model, self.sites, self._weights[arm], recipe)

    @cached_property
    def _weights(self) -> dict[str, dict[str, float]]:
        return {}

    def _weigh(self, placer: str, seed: int) -> dict[str, float]:
        rows = self.train[:: max(1, len(self.train) // 256)][:256]
        data = tuple({"input_ids": part} for part in rows.split(32)) if placer in ("gradient", "eva") else None
        if placer == "kappa, half":
            return half_by_condition(self.sites, self.model)
        if placer in ("permuted", "inverted"):
            ours = weigh_by(OURS, self.sites, self._context(seed, data))
            return permuted(ours, seed) if placer == "permuted" else inverted(ours)
        return weigh_by(placer, self.sites, self._context(seed, data))

    def _context(self, seed: int, data: tuple | None) -> PlacingContext:
        graph = partial(graph_of, self.model)
        return PlacingContext(
            model=self.model,
            calibration=Calibration(seed=seed),
            data=data,
            uniform_rank=self.setting.rank,
            read_graph=graph,
        )

    @cached_property
    def model(self) -> nn.Module:
        """Bookworm, or what is left of it."""
        model = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32).eval()
        return compress(model, **PRUNED) if self.setting.is_pruned else model

    @cached_property
    def sites(self) -> list:
        """Its linear layers."""
        return find_sites(self.model)

    @cached_property
    def train(self) -> Tensor:
        """Rows to learn from `[N, T]`."""
        return books("train") if self.setting.is_pruned else wikitext("valid")

    @cached_property
    def judged(self) -> Tensor:
        """Rows of the same domain, held out."""
        return spread(books("valid") if self.setting.is_pruned else wikitext("test"), JUDGED)

    @cached_property
    def remembered(self) -> Tensor:
        """Rows of the other domain."""
        return spread(wikitext("test") if self.setting.is_pruned else books("valid"), REMEMBERED)


def permuted(ours: dict[str, float], seed: int) -> dict[str, float]:
    """Our own weights, dealt out to the matrices at random: what is left of a gain when the order is taken away."""
    order = torch.randperm(len(ours), generator=torch.Generator().manual_seed(seed))
    values = list(ours.values())
    return {path: values[i] for path, i in zip(ours, order.tolist(), strict=True)}


def inverted(ours: dict[str, float]) -> dict[str, float]:
    """The reciprocal of our own weights: if they mean anything, this must be worse than uniform."""
    least = 1e-6 * max(ours.values())
    return {path: 1 / max(weight, least) for path, weight in ours.items()}


def half_by_condition(sites: list[Site], model: nn.Module) -> dict[str, float]:
    """KappaTune's order, with half of the matrices in place of its fifth."""
    ordered = KappaTuneSelector(model, show_progress=False).get_best_targets()
    ours = [name for name in ordered if name in {site.path for site in sites}]
    return {name: float(i < max(1, len(ours) // 2)) for i, name in enumerate(ours)}


def spread(rows: Tensor, count: int) -> Tensor:
    """`count` rows, evenly spread."""
    return rows[:: len(rows) // count][:count]


def wikitext(split: str) -> Tensor:
    """WikiText-2 in bookworm's tokens."""
    return tokens((DATA / f"wikitext2_{split}.txt").read_text(encoding="utf-8"))


def books(split: str, characters: int = 2_000_000) -> Tensor:
    """Books in bookworm's tokens, the beginning of each split."""
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(DATA / f"books_{split}.parquet")["text"].to_pylist()
    return tokens("\n".join(text[: characters // len(texts)] for text in texts))


def tokens(text: str) -> Tensor:
    """Rows of `LENGTH` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE)
    return windows(torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids), LENGTH)


if __name__ == "__main__":
    main()
