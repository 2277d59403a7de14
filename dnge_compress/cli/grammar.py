"""The grammar of `dnge`: its commands and their arguments. Only light modules are imported here, so help is quick."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NoReturn

from dnge_compress import __version__
from dnge_compress.cli.help_texts import EPILOG, EXAMPLES
from dnge_compress.core.errors import DngeError, nearest

TARGETS = (  # in the place of a ratio: option, example, meaning
    ("params", "4.2B", "parameters that may be left"),
    ("bytes", "8GB", "bytes of tensors that may be left"),
    ("memory", "12GB", "these and the key/value cache (--set cache_length=4096 --set cache_batch=1)"),
    ("active-params", "1.3B", "parameters that a token meets in a mixture of experts"),
    ("latency", "0.8x", "time of a forward pass here, as a share of the original's"),
)
MOST_RATIOS = 50  # of a curve
SOURCES = ".jsonl, .json, .parquet, .csv, .txt, a folder of one kind, a hub id"


class UsageError(DngeError):
    """A command line that doesn't fit the grammar."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError, so that wrong usage is reported as every other error is; takes no option by its beginning,
    so that scripts don't break when one is added."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's, with the nearest choices instead of all."""
        if action.choices is not None and value not in action.choices:
            near = nearest(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: '{value}'; {near}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but an option that the command hasn't is refused here, with those that it has."""
        found, left = super().parse_known_args(args, namespace)
        unknown = next((word.partition("=")[0] for word in left if word.startswith("-")), "")
        if unknown:
            takes_keys = any(action.dest == "overrides" for action in self._actions)
            keys = "; keys of the recipe stand without dashes (model_name_or_path=MODEL)" if takes_keys else ""
            self.error(f"unknown option {unknown}; {nearest(unknown, self._option_string_actions)}{keys}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the process."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parser() -> Parser:
    """The whole grammar. A command's options name the module of `cli` that carries it out, and the function there;
    words that name no command yet have the parser whose help says what may follow, `help_of`."""
    root = Parser(
        prog="dnge",
        description="Make a pretrained model smaller and faster without data.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"dnge {__version__}")
    root.set_defaults(help_of=root)
    commands = root.add_subparsers(metavar="COMMAND")
    json_flag = _flag("--json", "print exactly one JSON document")
    force = _flag("--force", "replace what dnge did not write, if it is named as files of ours are")
    opening, choosing = _opening_flags(f"rows of real text to calibrate on: {SOURCES}"), _choosing_flags()
    scored = _scores_flag()

    def command(name: str, *parents: Parser, about: str, module: str = "commands") -> Parser:
        found = _added(commands, name, parents, about)
        found.set_defaults(module=module, function=name)
        return found

    score = command("score", opening, choosing, json_flag, about="predict what removing each unit costs")
    _model(score)
    score.add_argument("-o", "--output", metavar="SCORES", help="folder for the scores, from which plans are made")
    plan = command("plan", opening, choosing, scored, force, json_flag, about="decide what to remove; changes nothing")
    _model(plan)
    _plan_file(plan)
    apply = command("apply", opening, scored, force, json_flag, about="carry out a plan on a copy of its base model")
    apply.add_argument("plan", metavar="PLAN.json")
    _model(apply)
    _output(apply)
    apply.add_argument("--any-weights", action="store_true", help="accept other weights of the same architecture")
    about = "score, plan, cut, repair and save"
    compress = command("compress", opening, choosing, scored, force, json_flag, about=about)
    _model(compress)
    _output(compress)
    about = "folder for finished parts, from which the same command goes on after a stop (default, from a billion "
    compress.add_argument("--work", metavar="DIR", help=about + "parameters on: OUT.unfinished)")
    about = "show what each ratio costs: size, quality and speed; changes nothing"
    curve = command("curve", opening, _choosing_flags(with_ratio=False), scored, force, json_flag, about=about)
    _model(curve)
    curve.add_argument(
        "--ratios", type=ratios, default=ratios(".1:.6:.1"), metavar="FIRST:LAST:STEP", help="or .1,.2,.5 (.1:.6:.1)"
    )
    curve.add_argument("--held-out", metavar="FILE", help="rows of real text that judge every plan")
    curve.add_argument("-o", "--output", metavar="CURVE.html", help="a page with table and plot")
    about = "compare two models on held-out text: quality, agreement, size, speed, samples"
    compare = command(
        "compare", _opening_flags("rows of text that neither was made with"), force, json_flag, about=about
    )
    _model(compare)
    compare.add_argument("other", metavar="OTHER", help="folder or Hugging Face id of the second model")
    compare.add_argument("-o", "--output", metavar="COMPARED.html", help="a page with the same")
    about = "tasks of lm-evaluation-harness that both are asked, with commas between; extra `tasks`"
    compare.add_argument("--tasks", type=some_names, default=(), metavar="NAMES", help=about)
    about = "folder with YAML files of tasks of your own"
    compare.add_argument("--task-folder", type=Path, metavar="FOLDER", help=about)
    about = "questions of each task at most (default: all)"
    compare.add_argument("--task-limit", type=positive, metavar="N", help=about)
    about = "generate text from a prompt with a causal language model; any that dnge opens"
    generate = command("generate", _opening_flags(), json_flag, about=about)
    _model(generate)
    generate.add_argument("prompt", metavar="PROMPT", help="what the model goes on from, or answers to")
    about = "the prompt is a user's turn (default: where the tokenizer has a chat template)"
    generate.add_argument("--chat", action=argparse.BooleanOptionalAction, help=about)
    about = "how much it writes at most (default: %(default)s)"
    generate.add_argument("--max-new-tokens", type=positive, default=128, metavar="N", help=about)
    about = "0 takes the likeliest token each time, 1 draws them as they are likely (default: 0)"
    generate.add_argument("--temperature", type=not_negative, default=0.0, metavar="T", help=about)
    generate.add_argument("--seed", type=seed, default=0, help="same seed, same draws (default: 0)")
    about = "decide where LoRA goes and with what rank; changes nothing"
    place = command("place", opening, force, json_flag, about=about)
    _model(place)
    _plan_file(place)
    place.add_argument("--recipe", default="lora/default", metavar="RECIPE", help="name or path (default: %(default)s)")
    place.add_argument("--placer", help="the method that decides: uniform, encoder, fisher, stable_rank, …")
    _set_flag(place)
    about = "remove tokens that given texts or scripts never use from model and tokenizer"
    reading = _opening_flags("texts of the kind that the model will read and write")
    vocabulary = command("vocabulary", reading, force, json_flag, about=about)
    _model(vocabulary)
    vocabulary.add_argument(
        "-o", "--output", metavar="OUT", help="folder for the smaller model (default: print the plan)"
    )
    vocabulary.add_argument(
        "--scripts", type=names, default=(), metavar="A,B", help="tokens that stay whole: Latin, Cyrillic, Han, …"
    )
    vocabulary.add_argument("--round-to", type=positive, default=1, metavar="N", help="keep a multiple of N tokens")
    about = "run a job: prune, place LoRA, train, merge, report; goes on where it stopped"
    run = command("run", json_flag, about=about, module="job_commands")
    run.add_argument("recipe", metavar="RECIPE", help="name or path; see `dnge recipes ls`")
    run.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="e.g. model_name_or_path=gpt2 train.learning_rate=1e-4"
    )
    run.add_argument("--dry-run", action="store_true", help="check the recipe and show the plan; do nothing")
    about = "show what was done to a saved model, or by a job"
    report = command("report", about=about, module="report_commands")
    report.add_argument("folder", metavar="OUT", help="folder that dnge wrote a model or a job to")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print exactly one JSON document")
    form.add_argument("--html", action="store_true", help="print one HTML page, with plots")
    _data(commands, json_flag)
    _recipes(commands, json_flag, force)
    about = "print versions and the machine, for bug reports"
    command("env", json_flag, about=about, module="environment")
    about = "print a script that lets a shell complete commands and options"
    completion = command("completion", json_flag, about=about, module="completion")
    completion.add_argument("shell", choices=("bash", "zsh"))

    about = "train small networks for the encoder to learn from"
    zoo = command("zoo", json_flag, about=about, module="training_commands")
    zoo.add_argument("-o", "--output", type=Path, default=Path("zoo"), metavar="FOLDER", help="folder of the networks")
    _zoo_flags(zoo)
    about = "train the encoder that scores, and its zoo"
    pretrain = command("pretrain", json_flag, about=about, module="training_commands")
    file: dict[str, Any] = {"type": Path, "default": Path("base.safetensors"), "metavar": "FILE.safetensors"}
    pretrain.add_argument("-o", "--output", **file, help="the encoder's weights")
    pretrain.add_argument("--zoo", type=Path, default=Path("zoo"), metavar="FOLDER", help="folder of the networks")
    pretrain.add_argument("--steps", type=positive, help="examples that the encoder takes (default: 1600)")
    _zoo_flags(pretrain)
    about = "fit a small network (SIREN) to every image of a data set"
    inr = command("inr", json_flag, about=about, module="training_commands")
    inr.add_argument("data", help="mnist or cifar10")
    inr.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    inr.add_argument("--split", choices=("train", "held-out"), default="train")
    inr.add_argument("--count", type=int, default=60_000, help="images, from the first (default: all)")
    inr.add_argument("--fits", type=int, default=1, help="networks per image, each from its own initialisation")
    inr.add_argument("--steps", type=int, help="Adam's steps per network (default: the data set's usual ones)")
    inr.add_argument("--learning-rate", type=float, help="Adam's; wide networks want less (default: 3e-3)")
    inr.add_argument("--base-width", type=positive, help="let matrices' rates fall as this width / fan-in")
    inr.add_argument("--hidden", type=int, nargs="+", default=(32, 32), help="widths (default: %(default)s)")
    _making_flags(inr)
    return root


def _added(
    commands: argparse._SubParsersAction[Parser], name: str, parents: tuple[Parser, ...], about: str, example: str = ""
) -> Parser:
    return commands.add_parser(
        name,
        parents=parents,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"example:\n  {EXAMPLES[example or name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _data(commands: argparse._SubParsersAction[Parser], json_flag: Parser) -> None:
    data = _added(commands, "data", (), "show rows of text as they are learned")
    data.set_defaults(help_of=data)
    verbs = data.add_subparsers(metavar="show")
    about = "print rows with what a job learns of them, in colour and in brackets"
    show = _added(verbs, "show", (json_flag,), about, example="data show")
    show.set_defaults(module="data_commands", function="show")
    show.add_argument("file", metavar="FILE", help=f"{SOURCES}, or {{path: …, columns: …}} as in a recipe")
    show.add_argument("--model", dest="of", metavar="MODEL", help="whose tokenizer and chat template write the rows")
    show.add_argument("--rows", type=positive, default=3, metavar="N", help="how many, from the first (default: 3)")


def _recipes(commands: argparse._SubParsersAction[Parser], json_flag: Parser, force: Parser) -> None:
    recipes = _added(commands, "recipes", (), "list, show, copy or check recipes")
    recipes.set_defaults(help_of=recipes)
    verbs = recipes.add_subparsers(metavar="ls|show|cp|validate|schema")

    def verb(name: str, *parents: Parser, about: str) -> Parser:
        found = _added(verbs, name, parents, about)
        found.set_defaults(module="recipe_commands", function=name)
        return found

    verb("ls", json_flag, about="list the recipes that come with the package")
    verb("show", json_flag, about="print a recipe").add_argument("name", metavar="RECIPE")
    cp = verb("cp", force, json_flag, about="copy a recipe to a file, to be edited")
    cp.add_argument("name", metavar="RECIPE")
    cp.add_argument("target", metavar="FILE.yaml")
    check = verb("validate", json_flag, about="check a recipe; exit code 2 says what is wrong")
    check.add_argument("name", metavar="RECIPE")
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    schema = verb("schema", json_flag, about="print the JSON schema of a kind of recipe, for editors")
    schema.add_argument("kind", choices=("prune", "lora", "job"))


def _model(command: Parser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder or Hugging Face id of the base model")


def _output(command: Parser) -> None:
    command.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the smaller model")


def _plan_file(command: Parser) -> None:
    command.add_argument("-o", "--output", metavar="PLAN.json", help="file for the plan (default: stdout)")


def _scores_flag() -> Parser:
    flags = Parser(add_help=False)
    flags.add_argument("--scores", metavar="SCORES", help="folder of `dnge score`, which is not done again")
    return flags


def _flag(name: str, about: str) -> Parser:
    flags = Parser(add_help=False)
    flags.add_argument(name, action="store_true", help=about)
    return flags


def _opening_flags(about_data: str = "") -> Parser:
    """How a model is opened, and --data if there is something to say about it."""
    flags = Parser(add_help=False)
    group = flags.add_argument_group("model and data" if about_data else "model")
    group.add_argument("--device", help="where to run, e.g. cuda (default: cpu)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    if about_data:
        group.add_argument("--data", metavar="FILE", help=about_data)
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    group.add_argument("--allow-pickle", action="store_true", help="read pickled weights (they can run code)")
    return flags


def _choosing_flags(with_ratio: bool = True) -> Parser:
    flags = Parser(add_help=False)
    group = flags.add_argument_group("recipe")
    group.add_argument(
        "--recipe", default="prune/default", metavar="RECIPE", help="name or path (default: %(default)s)"
    )
    if with_ratio:
        group.add_argument("--ratio", type=float, help="fraction to remove, 0 <= ratio < 1; or one of these:")
        for name, example, what in TARGETS:
            group.add_argument(f"--{name}", metavar=example, help=what)
    group.add_argument(
        "--scorer", help="the method that scores: encoder, obs, magnitude, random, fisher, taylor, flap, wanda"
    )
    group.add_argument("--seed", type=seed, help="same seed, same result")
    _set_flag(group)
    return flags


def _set_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key of the recipe; repeatable"
    )


def _zoo_flags(command: Parser) -> None:
    command.add_argument("--runs", type=positive, help="training runs; each gives three networks (default: 200)")
    about = "who starts the processes: a pool here (default), or Ray, here or on the cluster RAY_ADDRESS; extra `ray`"
    command.add_argument("--engine", choices=("pool", "ray"), default="pool", help=about)
    _making_flags(command)


def _making_flags(command: Parser) -> None:
    command.add_argument("--seed", type=seed, default=0)
    command.add_argument("--jobs", type=positive, default=1, help="processes, one thread each")
    about = "folder of the data sets (else DNGE_DATA, ../shared/data)"
    command.add_argument("--data-folder", type=Path, metavar="FOLDER", help=about)


def ratios(text: str) -> tuple[float, ...]:
    """Several ratios: "FIRST:LAST:STEP", both ends included, or some with commas between."""
    try:
        if ":" not in text:
            return tuple(map(float, text.split(",")))
        first, last, step = map(float, text.split(":"))
        found = tuple(
            round(first + i * step, 9) for i in range(MOST_RATIOS + 1) if first + i * step <= last + step / 1e6
        )
    except ValueError:
        found = ()
    if not found or len(found) > MOST_RATIOS:
        raise argparse.ArgumentTypeError(f"'{text}' is no FIRST:LAST:STEP, e.g. .1:.6:.1, of {MOST_RATIOS} at most")
    return found


def positive(text: str) -> int:
    """A number of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def names(text: str) -> tuple[str, ...]:
    """Names with commas between; maybe none."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def some_names(text: str) -> tuple[str, ...]:
    """Names with commas between; at least one."""
    found = names(text)
    if not found:
        raise argparse.ArgumentTypeError("no name is given; write them with commas between")
    return found


def seed(text: str) -> int:
    """A number that all random generators take."""
    value = int(text)
    if not 0 <= value < 1 << 32:
        raise argparse.ArgumentTypeError(f"{value} is no number from 0 to {(1 << 32) - 1}")
    return value


def not_negative(text: str) -> float:
    """A finite number of at least zero."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 0")
    return value
