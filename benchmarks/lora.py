"""Where should LoRA go? Placements at equal trainable parameters, each at its own best learning rate, five seeds.

    python benchmarks/lora.py          # about an hour on one core; writes results/lora.{md,json}

Bookworm, a language model trained on books, is adapted to WikiText-2; its pruned copy is brought back on books. Every
arm of a setting has the same budget in parameters, the same start, order of data and steps; its learning rate is the
best of a grid of at least four that doubles from one to the next, and grows until the best one is inside. Differences
are paired by seed. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from adapting import adapt, held_out_loss, windows
from harness import DATA, RESULTS, markdown, write
from peft.helpers import KappaTuneSelector
from scipy.stats import t as student
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
LENGTH, BATCH, STEPS = 64, 4, 60
JUDGED, REMEMBERED = 128, 64  # rows of the new and of the old domain
POINTS = 4  # of the grid of learning rates, to begin with
SEEDS = 5
MAX_RANK = 256  # few matrices must be able to take the whole budget
PRUNED = {"ratio": 0.4, "allocation": "global", "uneven": True}
OURS, BASELINE = "encoder", "uniform, all linear"
# Name in the table → placer, and the seed where it deals out at random. "Undamped" weights are the root mean square
# gradients themselves, the rule that was tried first.
ARMS = {
    BASELINE: ("uniform", 0),
    OURS: ("encoder", 0),
    "encoder's ranks permuted, 1": ("permuted", 1),
    "encoder's ranks permuted, 2": ("permuted", 2),
    "encoder's ranks permuted, 3": ("permuted", 3),
    "encoder, undamped": ("encoder", 0),
    "undamped ranks permuted, 1": ("permuted", 1),
    "undamped ranks permuted, 2": ("permuted", 2),
    "undamped ranks permuted, 3": ("permuted", 3),
    "undamped ranks inverted": ("inverted", 0),
    "fisher (measured gradient), undamped": ("fisher", 0),
    "stable rank": ("stable_rank", 0),
    "KappaTune, top 20 %": ("kappa", 0),
    "KappaTune, top 50 %": ("kappa, half", 0),
    "attention only": ("attention", 0),
    "MLP only": ("mlp", 0),
    "gradient, with data": ("gradient", 0),
    "EVA's ranks, with data": ("eva", 0),
}
ONLY_TIGHT = (", 2", ", 3", "20 %", "inverted", "attention only", "encoder's ranks permuted, 1")
FEW_ARMS = tuple(name for name in ARMS if not name.endswith(ONLY_TIGHT))
SHARES = (0.5, 0.7)  # of the budget: how many parameters does ours need for uniform's loss?


@dataclass(frozen=True)
class Setting:
    """One table: a model, what it learns, what it should not forget, and a budget as a uniform rank."""

    name: str
    title: str
    rank: int
    first_rate: float
    arms: tuple[str, ...]
    is_pruned: bool = False


SETTINGS = (
    Setting("tight", "WikiText-2, budget of uniform r = 2", 2, 0.005, tuple(ARMS)),
    Setting(
        "recovery",
        "Books again, after 40 % of the parameters went, unevenly, and the repair; budget of uniform r = 4",
        4,
        0.0025,
        FEW_ARMS,
        is_pruned=True,
    ),
    Setting("generous", "WikiText-2, budget of uniform r = 16", 16, 0.00125, FEW_ARMS),
)


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
    publish(kept, chosen)


@dataclass
class Kept:
    """Results by setting, arm, learning rate and seed; on disk after every one."""

    path: Path
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.rows = json.loads(self.path.read_text())

    def measure(self, key: str, run: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The row called `key`, run if it is missing."""
        if key not in self.rows:
            started = time.perf_counter()
            row = run()
            self.rows[key] = row
            half = self.path.with_suffix(".half")
            half.write_text(json.dumps(self.rows, indent=0))
            half.replace(self.path)
            shown = "  ".join(f"{k} {v:.4f}" for k, v in row.items())
            print(f"{key:60s} {shown}   {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        return self.rows[key]


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


def key_of(setting: Setting, arm: str, lr: float, seed: int, share: float = 1.0) -> str:
    """Name of a row."""
    return f"{setting.name}|{arm}|{lr:g}|{seed}" + (f"|{share:g}" if share != 1 else "")


def best_rate(kept: Kept, setting: Setting, arm: str) -> float:
    """The learning rate with the lowest loss at seed 0."""
    found = {}
    for key, row in kept.rows.items():
        parts = key.split("|")
        if parts[:2] == [setting.name, arm] and parts[3:] == ["0"]:
            found[float(parts[2])] = row["loss"]
    return min(found, key=found.__getitem__)


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of first − second, and half of its 95 % interval (Student's t over seeds)."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n = len(differences)
    return statistics.fmean(differences), float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(
        n
    )


def publish(kept: Kept, settings: Sequence[Setting]) -> None:
    """results/lora.md and .json."""
    lines = [__doc__.strip().split("\n\n")[2].replace("\n", " "), ""]
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


if __name__ == "__main__":
    main()
