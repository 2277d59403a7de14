"""What the subcommands of `dnge` do that need a model: parse nothing, call the api, print."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dnge_compress import api
from dnge_compress.checkpoint import open_model
from dnge_compress.checkpoint.compression import REPORT, VOCABULARY
from dnge_compress.cli.early import lora_recipe, prune_recipe
from dnge_compress.cli.output import print_json, print_text, say_what_now
from dnge_compress.cli.progress_bars import session
from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.errors import CheckpointError, DngeError, PlanError, first_line
from dnge_compress.core.files import read_text, write_whole
from dnge_compress.core.folders import whole_folder
from dnge_compress.core.processes import one_process_writes, rank, world
from dnge_compress.core.progress import Progress
from dnge_compress.core.terminal import show
from dnge_compress.graph.families import build_graph
from dnge_compress.jobs.data.texts import read_texts
from dnge_compress.jobs.folder import STATE
from dnge_compress.jobs.report.job_report import JobReport, finished
from dnge_compress.lora.place import place_lora
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.plans.plan_json import PLANS, plan_in
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.space_rows import PLURAL
from dnge_compress.plans.vocabulary_plan import VocabularyPlan
from dnge_compress.recipes.library import validate
from dnge_compress.recipes.lora_schema import LoraRecipe
from dnge_compress.recipes.schema import Recipe
from dnge_compress.report.report import Report
from dnge_compress.signals.user_data import UserData
from dnge_compress.vocabulary.coverage import texts_in
from dnge_compress.vocabulary.trim import plan_vocabulary

P = TypeVar("P", bound=PrunePlan | LoraPlan | VocabularyPlan)


def score(options: Namespace) -> None:
    """`dnge score MODEL`"""
    recipe = prune_recipe(options)
    with session() as progress:
        model = _open(options, progress)
        scores = api.score(model, recipe, data=_data(options, model, recipe), progress=progress)
    if options.json:
        print_json(scores.to_dict())
    else:
        graph = build_graph(model)
        show(_scores_table({n: (graph.space(n).kind, v.tolist()) for n, v in scores.units.items()}))


def plan(options: Namespace) -> None:
    """`dnge plan MODEL -o plan.json`"""
    _make_plan(options, prune_recipe(options), PrunePlan, api.plan)


def apply(options: Namespace) -> None:
    """`dnge apply plan.json MODEL -o OUT`"""
    if _is_about_tokens(Path(options.plan)):
        _apply_vocabulary(VocabularyPlan.read(Path(options.plan)), options)
        return
    made = PrunePlan.read(Path(options.plan))
    recipe: Recipe = validate(made.recipe, options.plan)
    with session() as progress:
        model = _open(options, progress)
        data, anyway = _data(options, model, recipe), options.any_weights
        small: Any = api.apply(made, model, data=data, inplace=True, any_weights=anyway, progress=progress)
        _save(small, options, progress)
    print_report(small.dnge.report, options)
    say_what_now(small, options)


def compress(options: Namespace) -> None:
    """`dnge compress MODEL -o OUT`"""
    recipe = prune_recipe(options)
    with session() as progress:
        model = _open(options, progress)
        data = _data(options, model, recipe)
        small: Any = api.compress(model, recipe, data=data, inplace=True, progress=progress)
        _save(small, options, progress)
    print_report(small.dnge.report, options)
    say_what_now(small, options)


def place(options: Namespace) -> None:
    """`dnge place MODEL -o lora.json`"""
    _make_plan(options, lora_recipe(options), LoraPlan, place_lora)


def vocabulary(options: Namespace) -> None:
    """`dnge vocabulary MODEL --data texts.txt -o OUT`"""
    scripts = [script.strip() for script in options.scripts.split(",") if script.strip()]
    texts = texts_in(Path(options.data)) if options.data else None
    with session() as progress:
        model = _open(options, progress)
        made = plan_vocabulary(model, texts, scripts=scripts, round_to=options.round_to, progress=progress)
    if options.output:
        _apply_vocabulary(made, options, model)
    else:
        print(made.to_json(), end="")


def report(options: Namespace) -> None:
    """`dnge report OUT`"""
    folder = whole_folder(Path(options.folder))
    if (folder / STATE).is_file():
        print_report(finished(folder), options)
        return
    pruned = Report.read(folder / REPORT) if (folder / REPORT).is_file() else None
    tokens = VocabularyPlan.read(folder / VOCABULARY) if (folder / VOCABULARY).is_file() else None
    if pruned is None and tokens is None:
        raise CheckpointError(f"'{folder}' has no {REPORT}, so it wasn't saved by dnge")
    if options.json and pruned and tokens:
        print_json({**pruned.to_dict(), "vocabulary": tokens.to_dict()})
        return
    for made in (pruned, tokens):
        if made is not None:
            print_report(made, options)


def _make_plan(options: Namespace, recipe: Recipe | LoraRecipe, kind: type[P], make: Callable[..., P]) -> None:
    target = Path(options.output) if options.output else None
    if target:
        _refuse_file(target, options.force, kind)
    with session() as progress:
        model = _open(options, progress)
        made = make(model, recipe, data=_data(options, model, recipe), progress=progress)
    if target:
        with one_process_writes() as is_mine:
            if is_mine:
                write_whole(target, made.to_json())
    if options.json or not target:
        print_text(made.to_json().rstrip("\n"))
    else:
        show(made.document())


def _apply_vocabulary(made: VocabularyPlan, options: Namespace, model: nn.Module | None = None) -> None:
    with session() as progress:
        opened = _open(options, progress) if model is None else model
        small: Any = api.apply(made, opened, inplace=True)
        _save(small, options, progress)
    print_report(small.dnge.vocabulary, options)


def _is_about_tokens(path: Path) -> bool:
    """Whether a file holds a plan of `dnge vocabulary`; what can't be read is told by who reads it next."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and VocabularyPlan.FORMAT.key in raw


def _open(options: Namespace, progress: Progress) -> nn.Module:
    if options.device == "cuda" and world() > 1:  # a card for each process of this machine
        options.device = f"cuda:{os.environ.get('LOCAL_RANK', rank())}"
    if options.device:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError, NotImplementedError) as e:
            raise DngeError(f"device '{options.device}' can't be used: {first_line(e)}; name another") from None
    progress("open", 0, 1)
    model = open_model(
        options.model,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        dtype=options.dtype,
        device=options.device,
    )
    progress("open", 1, 1)
    return model


def _data(options: Namespace, model: nn.Module, recipe: Recipe | LoraRecipe) -> UserData | None:
    return read_texts(Path(options.data), model, recipe.calibration.length) if options.data else None


def _refuse_file(path: Path, force: bool, kind: type[P]) -> None:
    """Before the work starts: may what stands there be replaced by a plan?"""
    if path.exists() and not force:
        text = read_text(path)
        there = plan_in(text)
        if there != PLANS[kind.FORMAT.key]:
            what = f"a {there}" if there else "no plan"
            raise PlanError(f"'{path}' exists and is {what}; name another file, or pass --force to replace it")
        try:
            is_edited = kind is PrunePlan and PrunePlan.from_json(text).is_edited
        except PlanError:
            is_edited = True  # by a hand that slipped
        if is_edited:
            raise PlanError(f"'{path}' was edited by hand; name another file, or pass --force to replace it")


def _save(model: nn.Module, options: Namespace, progress: Progress) -> None:
    progress("save", 0, 1)
    api.save(model, options.output, force=options.force)
    progress("save", 1, 1)


def print_report(made: Report | JobReport | VocabularyPlan, options: Namespace) -> None:
    """Tables, or JSON if it is asked for."""
    if options.json:
        print_json(made.to_dict())
    else:
        show(made.document())


def _scores_table(summary: Mapping[str, tuple[str, Sequence[float]]]) -> Table:
    """Lowest, median and highest score per space; `summary` maps a space to its kind and values."""
    rows = []
    for space, (kind, values) in summary.items():
        ordered = sorted(values)
        points = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        cells = (Cell(text=f"{len(ordered):,}"), *(Cell(text=f"{point:.3g}") for point in points))
        rows.append((Cell(text=space), Cell(text=PLURAL.get(kind, kind), style="quiet"), *cells))
    names = (Column(title="space", kind="text"), Column(kind="text"))
    numbers = (Column(title=title) for title in ("units", "lowest", "median", "highest"))
    return Table(columns=(*names, *numbers), rows=tuple(rows))
