"""What the benchmarks share: one scoring context per data source, arms that prune a fresh copy, and result tables."""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from scipy.stats import t as student
from torch import nn

from dnge_compress import scorers
from dnge_compress.graph.counting import non_embedding_prices
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import Cut, Scores
from dnge_compress.plans.candidates import candidates
from dnge_compress.plans.planner import make_plan
from dnge_compress.plans.problem import Budget
from dnge_compress.plans.trial import best_repair, repair_values
from dnge_compress.recipes.library import resolve
from dnge_compress.recipes.schema import Calibration, Repair
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals import synthetic_text
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.comparison import Damage
from dnge_compress.signals.held_out import fitted_and_held_out
from dnge_compress.signals.inference import Inputs, inference_mode_of, writes_text
from dnge_compress.signals.sampled_text import sample_batches
from dnge_compress.signals.user_data import checked_data
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.repair import apply_repair

Judge = Callable[[nn.Module], float]
Rows = dict[tuple[str, ...], dict[int, list[float]]]  # of a table: what was measured at each ratio, by repetition
DEFAULT, SIDE, JOINT = "default", "side by side", "joint"  # repairs that keep the best of several ways
BEST_OF = {DEFAULT: Repair(), SIDE: Repair(compensate="lstsq"), JOINT: Repair(compensate="joint")}
JOINT: Literal["joint"] = "joint"  # the one that it makes where a recipe asks for it
RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
DATA = Path(os.environ.get("DNGE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def plain_inputs(model: Any, settings: Calibration, example: Inputs | None) -> list[Inputs]:
    """What release 0.1 calibrated on: text from the config's start token, or from token 0, 64 tokens long; words of
    English; painted images that know nothing of batch norms."""
    if not writes_text(model):
        kind = "words" if type(model).__name__.endswith("ForMaskedLM") else "auto"
        with patch.object(synthetic_text, "MOST_BY_RANK", 0.0):
            return synthesize(model, settings.model_copy(update={"kind": kind}), example)
    start = model.config.bos_token_id
    start = start if isinstance(start, int) and start < model.config.vocab_size else 0
    generator = torch.Generator().manual_seed(settings.seed)
    rows = settings.tokens // settings.length
    with inference_mode_of(model):
        texts = sample_batches(model, [[start]] * rows, settings.length, generator)
        return [{"input_ids": part} for ids in texts for part in ids.split(32)]


@dataclass
class Source:
    """One model with one set of inputs (synthetic of a seed, or real): scores are made once and used again."""

    model: nn.Module
    data: Iterable | None = None
    seed: int = 0
    tokens: int = 16384
    example: Inputs | None = None  # of a plain module
    prompts: tuple[str, ...] = ()  # with which the model begins the texts that it writes
    is_plain: bool = False  # calibrated as release 0.1 did it: on words or painted images as they are, 64 tokens long
    scores: dict[str, Scores] = field(default_factory=dict)
    holds_out: bool = False  # some of the data from all fits, to measure damage on, as `compress` does
    damage: Damage | None = None  # of the last default repair, on what damage is measured on

    def __post_init__(self) -> None:
        settings = Calibration(tokens=self.tokens, seed=self.seed, prompts=self.prompts)
        data = None if self.data is None else tuple(checked_data(self.data, self.model))
        data, held_out = (data, ()) if data is None or not self.holds_out else fitted_and_held_out(data)
        self.context = ScoringContext(
            graph=build_graph(self.model, self.example),
            model=self.model,
            calibration=settings,
            data=data,
            held_out=held_out,
            example_inputs=self.example,
        )
        if self.is_plain:
            inputs = plain_inputs(self.model, settings, self.example)
            self.context = replace(self.context, data=tuple(inputs))

    def prune(self, scorer: str, compensate: str, recipe: str, ratio: float) -> nn.Module:
        """A pruned copy of the model; the split over kinds is measured, as `compress` does it for every scorer."""
        method = BEST_OF[compensate].compensate if compensate in BEST_OF else compensate
        settings = resolve(recipe, {"ratio": ratio, "compensate": method, "scorer": scorer})
        return self._cut(make_plan(self.context, self._scored(scorer), settings).cuts, compensate)

    def prune_by_costs(self, scorer: str, recipe: str, ratio: float) -> nn.Module:
        """A pruned copy whose split over kinds is the scorer's own cheapest, unmeasured and without repair."""
        model, graph = self.model, self.context.graph
        budget = Budget.of(model, non_embedding_prices(model, graph))
        found, _ = candidates(graph, self._scored(scorer), resolve(recipe, {"ratio": ratio}).prune, budget)
        return self._cut(found[0].applied.cuts, "none")

    def _scored(self, scorer: str) -> Scores:
        if scorer not in self.scores:
            self.scores[scorer] = scorers.score(scorer, self.context)
        return self.scores[scorer]

    def _cut(self, cuts: Sequence[Cut], compensate: str) -> nn.Module:
        applied, small = AppliedCuts(self.context.graph, tuple(cuts)), copy.deepcopy(self.model)
        with torch.no_grad():
            if compensate in BEST_OF:
                found = best_repair(self.context, applied, BEST_OF[compensate])
                values, self.damage = found.values, found.damage
            else:
                values = repair_values(self.context, applied, Repair(compensate=compensate))
            cut(small, applied)
            apply_repair(small, applied, values)
        return small


@dataclass
class Table:
    """Rows of measurements at several ratios, one per repetition (seed); kept on disk after each, so that a run that
    was stopped goes on where it was."""

    name: str
    title: str
    ratios: tuple[float, ...]
    rows: Rows = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.partial.is_file():
            self.rows |= read_rows(json.loads(self.partial.read_text()))

    @property
    def partial(self) -> Path:
        """Where an unfinished run keeps its rows."""
        return RESULTS / f"{self.name}.partial.json"

    def has(self, keys: Iterable[tuple[str, ...]], repetition: int = 0) -> bool:
        """Whether all these rows are measured."""
        return all(repetition in self.rows.get(key, {}) for key in keys)

    def measure(
        self, key: tuple[str, ...], make: Callable[[float], nn.Module], judge: Judge, repetition: int = 0
    ) -> None:
        """Judge what `make(ratio)` returns at every ratio, log it and keep it."""
        if self.has([key], repetition):
            return
        started = time.perf_counter()
        values = [judge(make(ratio)) for ratio in self.ratios]
        self.rows.setdefault(key, {})[repetition] = values
        RESULTS.mkdir(exist_ok=True)
        self.partial.write_text(json.dumps(self._raw()))
        shown = "  ".join(f"{v:.4f}" for v in values)
        print(f"{' · '.join(key):60s} {shown}   {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    def write(self, columns: tuple[str, ...]) -> None:
        """Write results/NAME.json and results/NAME.md."""
        head = [*columns, *(f"{100 * r:g}%" for r in self.ratios)]
        lines = [f"# {self.title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for key, row in self.rows.items():
            cells = [_cell([v[i] for v in row.values()]) for i in range(len(self.ratios))]
            lines.append("| " + " | ".join([*key, *cells]) + " |")
        lines += ["", *self.notes, ""]
        (RESULTS / f"{self.name}.md").write_text("\n".join(lines))
        raw = {"title": self.title, "ratios": self.ratios, "rows": self._raw(), "notes": self.notes}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(raw, indent=1))
        self.partial.unlink(missing_ok=True)
        print("\n".join(lines))

    def _raw(self) -> list[dict]:
        return [{"row": key, "values": row} for key, row in self.rows.items()]


def read_rows(raw: Iterable[dict[str, Any]]) -> Rows:
    """Rows as a table writes them."""
    return {tuple(row["row"]): {int(k): v for k, v in row["values"].items()} for row in raw}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; bars within cells are escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, ["---"] * len(head), *rows)]
    return [f"| {' | '.join(cells)} |" for cells in escaped]


def kept_rows(name: str) -> list[dict[str, Any]]:
    """What an earlier run of a benchmark measured already."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else []


def keep_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """Write everything measured until now, whole or not at all."""
    half = RESULTS / f".{name}.half"
    half.write_text(json.dumps(rows, indent=1) + "\n")
    half.replace(RESULTS / f"{name}.json")


def write(name: str, title: str, lines: Sequence[str]) -> None:
    """A result as Markdown in results/NAME.md, printed as well."""
    text = "\n".join([f"# {title}", "", *lines, ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def put_in_readme(mark: str, lines: Sequence[str]) -> None:
    """Write a table into the README, between its comments `<!-- MARK:start -->` and `<!-- MARK:end -->`. Raises
    SystemExit where they are missing."""
    start, end = (f"<!-- {mark}:{side} -->" for side in ("start", "end"))
    before, found, rest = README.read_text(encoding="utf-8").partition(start)
    if not found or end not in rest:
        raise SystemExit(f"{README} has no '{start}' and '{end}'; put them where the table belongs")
    README.write_text("\n".join([before + start, *lines, end + rest.split(end)[1]]), encoding="utf-8")


def over_seeds(values: Sequence[float], digits: int) -> str:
    """Mean ± half of the 95 % interval over seeds (Student's t); one value as it is, and a dash for none."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "–"
    return f"{statistics.mean(values):.{digits}f} ± {half_interval(values):.{digits}f}"


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of first − second, seed by seed, and half of its 95 % interval."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return statistics.fmean(differences), half_interval(differences)


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds (Student's t); of two values at least."""
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def _cell(values: list[float]) -> str:
    digits = 3 if statistics.mean(values) >= 0.01 else 5
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
