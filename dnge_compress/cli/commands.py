"""What the subcommands of `dnge` do that need a model: parse nothing, call the api, print."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dnge_compress import api
from dnge_compress.checkpoint import open_model
from dnge_compress.cli.early import asked_tasks, lora_recipe, prune_recipe
from dnge_compress.cli.output import print_json, print_passage, print_text, say_how_written, say_what_now
from dnge_compress.cli.progress_bars import session
from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.errors import DngeError, PlanError, first_line
from dnge_compress.core.files import read_text, write_whole
from dnge_compress.core.launcher import local_rank
from dnge_compress.core.parts import Parts, kept_parts
from dnge_compress.core.processes import one_process_writes, rank, world
from dnge_compress.core.progress import Progress
from dnge_compress.core.terminal import show
from dnge_compress.data.texts import read_texts, read_windows, texts_in
from dnge_compress.graph.families import build_graph
from dnge_compress.jobs.compared import Compared
from dnge_compress.jobs.compared import compare as compare_models
from dnge_compress.jobs.report.job_report import JobReport
from dnge_compress.lora.place import place_lora
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.plans.plan_json import PLANS, plan_in
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.space_rows import PLURAL
from dnge_compress.plans.vocabulary_plan import VocabularyPlan, read_plan_of_cuts, refuse_beside_tokens
from dnge_compress.recipes.library import validate
from dnge_compress.recipes.lora_schema import LoraRecipe
from dnge_compress.recipes.schema import Recipe
from dnge_compress.report.curve import RatioCurve
from dnge_compress.report.report import Report
from dnge_compress.signals.user_data import UserData
from dnge_compress.tasks.writing import written
from dnge_compress.vocabulary.trim import plan_vocabulary

LARGE = 1_000_000_000  # parameters, whose compression takes so long that finished parts are kept
P = TypeVar("P", bound=PrunePlan | LoraPlan | VocabularyPlan)


def score(options: Namespace) -> None:
    """`dnge score MODEL`"""
    recipe = prune_recipe(options)
    with session() as progress:
        model = _open(options, progress)
        scores = api.score(model, recipe, data=_data(options, model, recipe), progress=progress)
        if options.output:
            progress("save", 0, 1)
            scores.save(options.output)
            progress("save", 1, 1)
    if options.output and not options.json:
        print(f"saved to   {options.output}", file=sys.stderr)
        same = [part for setting in options.set for part in ("--set", setting)]
        same += ["--scorer", options.scorer] if options.scorer else []
        words = ["dnge", "plan", options.model, "--recipe", options.recipe, "--scores", options.output, *same]
        print(f"next       {shlex.join(words)} --ratio 0.3", file=sys.stderr)
    if options.json:
        print_json(scores.to_dict())
    else:
        graph = build_graph(model)
        show(_scores_table({n: (graph.space(n).kind, v.tolist()) for n, v in scores.units.items()}))


def plan(options: Namespace) -> None:
    """`dnge plan MODEL -o plan.json`"""
    _make_plan(options, prune_recipe(options), PrunePlan, partial(api.plan, scores=options.scores))


def apply(options: Namespace) -> None:
    """`dnge apply plan.json MODEL -o OUT`"""
    made = read_plan_of_cuts(Path(options.plan))
    if isinstance(made, VocabularyPlan):
        given = {"--data": options.data, "--scores": options.scores, "--any-weights": options.any_weights}
        refuse_beside_tokens(*(name for name, value in given.items() if value))
        _apply_vocabulary(made, options)
        return
    recipe: Recipe = validate(made.recipe, options.plan)
    with session() as progress:
        model = _open(options, progress)
        data, anyway = _data(options, model, recipe), options.any_weights
        how = {"scores": options.scores, "data": data, "any_weights": anyway}
        small: Any = api.apply(made, model, **how, inplace=True, progress=progress)
        _save(small, options, progress)
    print_report(small.dnge.report, options)
    say_what_now(small, options)


def compress(options: Namespace) -> None:
    """`dnge compress MODEL -o OUT`"""
    recipe = prune_recipe(options)
    with session() as progress:
        model = _open(options, progress)
        data = _data(options, model, recipe)
        with _parts(_work(options, model)) as parts:
            how = {"scores": options.scores, "data": data, "work": parts}
            small: Any = api.compress(model, recipe, **how, inplace=True, progress=progress)
            _save(small, options, progress)
    print_report(small.dnge.report, options)
    say_what_now(small, options)


def curve(options: Namespace) -> None:
    """`dnge curve MODEL`"""
    recipe = prune_recipe(options)
    with session() as progress:
        model = _open(options, progress)
        data, scores = _data(options, model, recipe), options.scores
        judged = read_windows(options.held_out, model) if options.held_out else None
        made = api.curve(
            model, recipe, ratios=options.ratios, held_out=judged, scores=scores, data=data, progress=progress
        )
    _write_page(made, options)
    print_report(made, options)


def compare(options: Namespace) -> None:
    """`dnge compare MODEL OTHER --data texts.txt`"""
    tasks = asked_tasks(options)
    with session() as progress:
        first, second = _open(options, progress), _open(options, progress, options.other)
        data = read_windows(options.data, first)
        made = compare_models(first, second, data=data, tasks=tasks, progress=progress)
    _write_page(made, options)
    print_report(made, options)


def generate(options: Namespace) -> None:
    """`dnge generate MODEL PROMPT`"""
    with session() as progress:
        model = _open(options, progress)
        progress("write", 0, 1)
        how = {"tokens": options.max_new_tokens, "temperature": options.temperature, "seed": options.seed}
        made = written(model, options.prompt, is_chat=options.chat, **how)
        progress("write", 1, 1)
    if options.json:
        print_json(made.to_dict())
        return
    say_how_written(made, options.max_new_tokens)
    print_passage(made.text)


def place(options: Namespace) -> None:
    """`dnge place MODEL -o lora.json`"""
    _make_plan(options, lora_recipe(options), LoraPlan, place_lora)


def vocabulary(options: Namespace) -> None:
    """`dnge vocabulary MODEL --data texts.txt -o OUT`"""
    with session() as progress:
        model = _open(options, progress)
        texts = texts_in(options.data, model) if options.data else None
        made = plan_vocabulary(model, texts, scripts=options.scripts, round_to=options.round_to, progress=progress)
    if options.output:
        _apply_vocabulary(made, options, model)
    else:
        print(made.to_json(), end="")


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


def _write_page(made: RatioCurve | Compared, options: Namespace) -> None:
    if options.output:
        with one_process_writes() as is_mine:
            if is_mine:
                write_whole(Path(options.output), made.to_html())


def _open(options: Namespace, progress: Progress, source: str = "") -> nn.Module:
    if options.device == "cuda" and world() > 1:  # a card for each process of this machine
        options.device = f"cuda:{local_rank(rank())}"
    if options.device:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError, NotImplementedError) as e:
            raise DngeError(f"device '{options.device}' can't be used: {first_line(e)}; name another") from None
    progress("open", 0, 1)
    model = open_model(
        source or options.model,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        dtype=options.dtype,
        device=options.device,
    )
    progress("open", 1, 1)
    return model


def _work(options: Namespace, model: nn.Module) -> Path | None:
    """Where finished parts are kept: beside the result of a large model, if nothing else is said."""
    if options.work or world() > 1 or sum(p.numel() for p in model.parameters()) < LARGE:
        return Path(options.work) if options.work else None
    target = Path(options.output).expanduser().resolve()
    return target.with_name(f"{target.name}.unfinished")


@contextmanager
def _parts(folder: Path | None) -> Iterator[Parts]:
    """Finished parts, kept in a folder; where the work is stopped before its end, they stay, and it is said."""
    with kept_parts(folder) as parts:
        try:
            yield parts
        except BaseException:
            if parts.are_there:
                print(f"dnge: finished parts stay in '{folder}'; the same command goes on from them", file=sys.stderr)
            raise


def _data(options: Namespace, model: nn.Module, recipe: Recipe | LoraRecipe) -> UserData | None:
    return read_texts(options.data, model, recipe.calibration) if options.data else None


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


def print_report(made: Report | JobReport | VocabularyPlan | RatioCurve | Compared, options: Namespace) -> None:
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
