"""SIGKILL at random moments, and at random operations on files; then the same command again.

Half of the time of a command goes by without a file being touched, so moments by the clock seldom fall between two
renames; those counted by operations fall nowhere else.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reliability_setting import (
    CHEAP,
    VOLATILE,
    Ended,
    FileWrites,
    Row,
    Setting,
    difference,
    dnge,
    forked,
    leftovers,
    picture,
)

from dnge_compress.core.folders import whole_folder

MOST_TRIES = 4  # for each kill that comes before the command has ended
MUST = "the same result, nothing lost, no foreign file touched"


@dataclass(frozen=True)
class Command:
    """A command line, the files that it needs, and what it writes; how often it is killed."""

    words: tuple[str, ...]
    needs: tuple[str, ...]
    output: str
    times: int


# An output that stands in `needs` is there before, made with other settings.
COMMANDS = {
    "compress": Command(("compress", "llama", "-o", "out", "--ratio", "0.4", *CHEAP), ("llama", "out"), "out", 10),
    "apply": Command(("apply", "plan.json", "llama", "-o", "out"), ("llama", "plan.json", "out"), "out", 8),
    "plan": Command(("plan", "llama", "-o", "plan.json", *CHEAP), ("llama", "plan.json"), "plan.json", 4),
    "place": Command(("place", "llama", "-o", "lora.json"), ("llama", "lora.json"), "lora.json", 8),
    "vocabulary": Command(("vocabulary", "llama", "--scripts", "Latin", "-o", "words"), ("llama", "words"), "words", 5),
    "run": Command(("run", "job.yaml"), ("llama", "job.yaml", "rows.jsonl"), "job", 15),
}


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per command and way to choose the moment."""
    return {
        f"`dnge {name}`, {how}": partial(_killed, setting, name, how)
        for how in ("by the clock", "by file operations")
        for name in COMMANDS
    }


def _killed(setting: Setting, name: str, how: str) -> Row:
    command, failed = COMMANDS[name], []
    draw = random.Random(f"{setting.seed} {name} {how}")
    whole, seconds, operations = _unbroken(setting, command)
    times, tries, cut_short = setting.many(command.times), 0, 0
    while cut_short < times and tries < MOST_TRIES * times:
        tries += 1
        if how == "by the clock":
            share = draw.random()
            moment, kill = f"at {100 * share:.0f} % of its time", partial(_by_clock, share * seconds)
        else:
            number = draw.randrange(operations)
            moment, kill = f"before file operation {number} of {operations}", partial(_at_operation, number)
        ended, wrong = _one(setting, command, whole, kill)
        cut_short += ended.code == -signal.SIGKILL
        failed += [f"{moment}: {wrong}"] if wrong else []
    what = f"`dnge {name}`, {how}"
    note = f"{cut_short} killed; the others had ended by then" if cut_short < tries else ""
    return Row(part="kills", what=what, must=MUST, tried=tries, failed=tuple(failed), note=note)


def _by_clock(seconds: float, work: Callable[[], int], folder: Path) -> Ended:
    return forked(work, folder, kill_after=seconds)


def _at_operation(number: int, work: Callable[[], int], folder: Path) -> Ended:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    return forked(work, folder, writes=FileWrites(moment=number, at=die))


def _unbroken(setting: Setting, command: Command) -> tuple[dict[str, str], float, int]:
    """The result of a run that nobody stops, its seconds, and how many operations on files it takes."""
    writes = FileWrites()

    def counted() -> int:
        code = dnge(*command.words)()
        print(f"{writes.count} operations")
        return code

    with setting.trial(*command.needs) as folder:
        done = forked(counted, folder, writes=writes)
        if done.code:
            raise SystemExit(f"dnge {' '.join(command.words)} fails: {done.err[-1000:]}")
        operations = int(done.out.split()[-2])
        return result(folder, command.output), done.seconds, operations


def result(folder: Path, output: str) -> dict[str, str]:
    """What must be the same in every run: all bytes but for seconds and speeds, and a job's losses and curves."""
    target = whole_folder(folder / output)
    if target.is_file():
        return {output: picture(folder)[output]}
    found = {k: v for k, v in picture(target, VOLATILE, folder).items() if not k.startswith("training") and k[0] != "."}
    report = target / "report.json"
    if report.is_file():
        raw: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        found["losses"] = repr([(m["name"], m["loss"]) for m in raw["milestones"]])
        found["curves"] = repr(raw["curves"])
    return found


def _one(
    setting: Setting, command: Command, whole: dict[str, str], kill: Callable[[Callable[[], int], Path], Ended]
) -> tuple[Ended, str]:
    with setting.trial(*command.needs, "beside") as folder:
        _spread(folder)
        inputs = picture(folder)
        old = result(folder, command.output) if command.output in command.needs else {}
        ended = kill(dnge(*command.words), folder)
        between = result(folder, command.output)
        if old and difference(old, between) and difference(whole, between):
            return ended, f"neither the old result nor the new one is there ({difference(old, between)})"
        again = forked(dnge(*command.words), folder)
        if again.code:
            return ended, f"run again, it ends with {again.code}: {again.said}"
        if wrong := difference(whole, result(folder, command.output)):
            return ended, f"run again, its result is another: {wrong}"
        after = {k: v for k, v in picture(folder).items() if k.partition("/")[0] != command.output}
        mine = {k: v for k, v in inputs.items() if k.partition("/")[0] != command.output}
        if wrong := difference(mine, after):
            return ended, f"touched or left: {wrong}"
        return ended, f"half written: {left}" if (left := leftovers(folder / command.output)) else ""


def _spread(folder: Path) -> None:
    """Put foreign files where results are written."""
    for path in sorted((folder / "beside").iterdir()):
        path.rename(folder / path.name)
    (folder / "beside").rmdir()
