"""What `lora.py` compares, and its results by setting, arm, learning rate and seed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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
