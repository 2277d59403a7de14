"""The command `dnge`: parse, run, turn errors into one line and an exit code.

Only light modules are imported here; what needs torch stands in `commands` and is imported when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from collections.abc import Sequence

from dnge_compress import __version__
from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.errors import BudgetError, DngeError, ExactnessError
from dnge_compress.core.terminal import show

UNEXPECTED, BAD_INPUT, IMPOSSIBLE_BUDGET, NOT_EXACT, INTERRUPTED = 1, 2, 3, 4, 130
DEFAULT_RECIPE = "prune/default"
PROGRAMS = {  # with a grammar of their own: where it stands, and what it does
    "pretrain": ("dnge_compress.zoo.pretrain.train", "train the encoder that scores"),
    "inr": ("dnge_compress.inr.sets", "fit a small network to every image of a data set"),
}

EPILOG = """\
examples:
  dnge compress sentence-transformers/all-MiniLM-L6-v2 -o small --ratio 0.3
  dnge plan MODEL -o plan.json --recipe prune/neurons && dnge apply plan.json MODEL -o small
  dnge report small
  dnge run jobs/prune-recover model_name_or_path=MODEL output_dir=runs/small

exit codes:
  0  done
  1  unexpected failure (DNGE_DEBUG=1 shows the traceback)
  2  usage or bad input: an unknown recipe, a broken checkpoint, a folder that is not ours
  3  a budget that is out of range or can't be reached
  4  the exactness check failed; nothing was written

Data goes to stdout, progress and errors to stderr.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dnge` with the arguments `argv` (those of the process by default); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debugging = os.environ.get("DNGE_DEBUG") == "1"
    try:
        with warnings.catch_warnings():
            if not is_debugging:
                warnings.simplefilter("ignore")
            return _run(arguments)
    except BrokenPipeError:
        # The reader of our output went away (`dnge … | head`); without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("dnge: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as e:
        if is_debugging:
            raise
        return _tell(e)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    root = argparse.ArgumentParser(
        prog="dnge",
        description="Make a pretrained model smaller and faster without data.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"dnge {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    json_flag, force, opening, choosing = _json_flag(), _force_flag(), _opening_flags(), _choosing_flags()

    score = commands.add_parser(
        "score", parents=[opening, choosing, json_flag], help="predict what the removal of each unit costs"
    )
    _model(score)
    plan = commands.add_parser(
        "plan", parents=[opening, choosing, force, json_flag], help="decide what to remove; changes nothing"
    )
    _model(plan)
    plan.add_argument("-o", "--output", metavar="PLAN.json", help="file for the plan (default: stdout)")
    apply = commands.add_parser(
        "apply", parents=[opening, force, json_flag], help="carry out a plan on a fresh copy of its base model"
    )
    apply.add_argument("plan", metavar="PLAN.json")
    _model(apply)
    _output(apply)
    apply.add_argument("--any-weights", action="store_true", help="accept other weights of the same architecture")
    compress = commands.add_parser(
        "compress", parents=[opening, choosing, force, json_flag], help="score, plan, cut, repair and save"
    )
    _model(compress)
    _output(compress)
    place = commands.add_parser(
        "place", parents=[opening, force, json_flag], help="decide where LoRA goes and with what rank; changes nothing"
    )
    _model(place)
    place.add_argument("-o", "--output", metavar="PLAN.json", help="file for the plan (default: stdout)")
    place.add_argument("--recipe", default="lora/default", help="name or path (default: %(default)s)")
    place.add_argument("--placer", help="who decides: uniform, encoder, fisher, stable_rank, …")
    _set_flag(place)
    run = commands.add_parser(
        "run", parents=[json_flag], help="run a job: prune, place LoRA, train, merge, report; goes on where it stopped"
    )
    run.add_argument("recipe", metavar="RECIPE", help="name or path; see `dnge recipes ls`")
    run.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="e.g. model_name_or_path=gpt2 train.learning_rate=1e-4"
    )
    run.add_argument("--dry-run", action="store_true", help="check the recipe and show the plan; do nothing")
    report = commands.add_parser("report", parents=[json_flag], help="show what was done to a saved model, or by a job")
    report.add_argument("folder", metavar="OUT", help="folder written by `dnge compress`, `dnge apply` or `dnge run`")

    recipes = commands.add_parser("recipes", help="list, show, copy or check recipes")
    verbs = recipes.add_subparsers(dest="verb", required=True, metavar="ls|show|cp|validate|schema")
    verbs.add_parser("ls", parents=[json_flag], help="list the recipes that come with the package")
    show = verbs.add_parser("show", parents=[json_flag], help="print a recipe")
    show.add_argument("name", metavar="RECIPE")
    cp = verbs.add_parser("cp", parents=[force], help="copy a recipe to a file, to be edited")
    cp.add_argument("name", metavar="RECIPE")
    cp.add_argument("target", metavar="FILE.yaml")

    check = verbs.add_parser("validate", parents=[json_flag], help="check a recipe; exit code 2 says what is wrong")
    check.add_argument("name", metavar="RECIPE")
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    schema = verbs.add_parser("schema", help="print the JSON schema of a kind of recipe, for editors")
    schema.add_argument("kind", choices=("prune", "lora", "job"))

    for name, (_, what) in PROGRAMS.items():
        commands.add_parser(name, add_help=False, help=f"{what} (see dnge {name} --help)")
    return root


def _run(arguments: list[str]) -> int:
    if arguments[:1] and arguments[0] in PROGRAMS:
        return importlib.import_module(PROGRAMS[arguments[0]][0]).main(arguments[1:]) or 0
    options = parser().parse_args(arguments)
    if options.command == "recipes":
        return _recipes(options)
    if options.command == "run":  # a wrong recipe is reported before torch and the rest are loaded
        library = importlib.import_module("dnge_compress.recipes.library")
        library.load(options.recipe, library.assignments(options.overrides))
    home = "job_commands" if options.command == "run" else "commands"
    getattr(importlib.import_module(f"dnge_compress.cli.{home}"), options.command)(options)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    library = importlib.import_module("dnge_compress.recipes.library")
    if options.verb == "cp":
        library.copy(options.name, options.target, force=options.force)
    elif options.verb == "show" and not options.json:
        print(library.text(options.name), end="")
    elif options.verb == "show":
        library.find(options.name)
        print(library.load(options.name).model_dump_json(indent=1))
    elif options.verb == "schema":
        print(json.dumps(library.KINDS[options.kind].model_json_schema(), indent=1))
    elif options.verb == "validate":
        found = library.load(options.name, library.assignments(options.overrides))
        print(found.model_dump_json(indent=1) if options.json else f"{options.name}: a sound {found.recipe} recipe")
    elif options.json:
        print(json.dumps([library.load(name).model_dump() for name in library.names()], indent=1))
    else:
        listed = [library.load(name) for name in library.names()]
        rows = tuple((Cell(text=r.name), Cell(text=r.about, style="quiet")) for r in listed)
        columns = (Column(title="recipe", kind="text"), Column(kind="text", is_long=True))
        show(Table(columns=columns, rows=rows))
    return 0


def _tell(error: Exception) -> int:
    message = " ".join(str(error).split())
    if isinstance(error, DngeError):
        print(f"dnge: error: {message}", file=sys.stderr)
        codes = {BudgetError: IMPOSSIBLE_BUDGET, ExactnessError: NOT_EXACT}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), BAD_INPUT)
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    print(f"dnge: error: unexpected {what} (DNGE_DEBUG=1 shows where)", file=sys.stderr)
    return UNEXPECTED


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder or Hugging Face id of the base model")


def _output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the smaller model")


def _json_flag() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--json", action="store_true", help="print exactly one JSON document")
    return flags


def _force_flag() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--force", action="store_true", help="replace an output that dnge did not write")
    return flags


def _opening_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("model and data")
    group.add_argument("--device", help="where to run, e.g. cuda (default: cpu)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    group.add_argument("--data", metavar="FILE.txt", help="real text to calibrate on, one text per line")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    group.add_argument("--allow-pickle", action="store_true", help="read pickled weights (they can run code)")
    return flags


def _choosing_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("recipe")
    group.add_argument("--recipe", default=DEFAULT_RECIPE, help="name or path (default: %(default)s)")
    group.add_argument("--ratio", type=float, help="fraction to remove, 0 <= ratio < 1")
    group.add_argument("--scorer", help="who scores: encoder, obs, magnitude, random, fisher, taylor, flap, wanda")
    group.add_argument("--seed", type=int, help="same seed, same result")
    _set_flag(group)
    return flags


def _set_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key of the recipe; repeatable"
    )
