"""Two and four processes that write to one place at the same moment."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from reliability_kills import result
from reliability_setting import CHEAP, Row, Setting, dnge, forked, leftovers

MUST = "one wins whole, the others say so with exit code 2"
TIMES = 5
# Of several processes, each makes something else; `{}` is its number.
COMMANDS = {
    "compress": ("compress", "llama", "-o", "new", "--ratio", "0.{}", *CHEAP),
    "apply": ("apply", "plan.json", "llama", "-o", "new"),
    "plan": ("plan", "llama", "-o", "new.json", "--ratio", "0.{}", *CHEAP),
    "place": ("place", "llama", "-o", "new.json", "--set", "trainable_params={}000"),
    "vocabulary": ("vocabulary", "llama", "--data", "texts.txt", "-o", "new", "--round-to", "{}"),
    "recipes cp": ("recipes", "cp", "prune/default", "new.yaml"),
    "run": ("run", "job.yaml", "eval_fraction=0.{}", "output_dir=new"),
}


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per command and number of processes."""
    return {f"{n} × `dnge {name}`": partial(_raced, setting, name, n) for n in (2, 4) for name in COMMANDS}


def _raced(setting: Setting, name: str, processes: int) -> Row:
    failed = []
    lines = [[word.replace("{}", str(i + 2)) for word in COMMANDS[name]] for i in range(processes)]
    output = next(word for word in ("new", "new.json", "new.yaml") if any(word in part for part in lines[0]))
    output = {"run": "new", "recipes cp": "new.yaml"}.get(
        name, lines[0][lines[0].index("-o") + 1] if "-o" in lines[0] else output
    )
    alone = [_alone(setting, line, output) for line in lines]
    times = setting.many(1 if name == "run" else TIMES)
    for _ in range(times):
        with setting.trial("llama", "plan.json", "texts.txt", "rows.jsonl", "job.yaml") as folder:
            wrong = _together(folder, lines, output, alone)
            failed += [wrong] if wrong else []
    return Row(part="races", what="", must=MUST, tried=times, failed=tuple(failed))


def _alone(setting: Setting, line: list[str], output: str) -> dict[str, str]:
    with setting.trial("llama", "plan.json", "texts.txt", "rows.jsonl", "job.yaml") as folder:
        done = forked(dnge(*line), folder)
        if done.code:
            raise SystemExit(f"dnge {' '.join(line)} fails: {done.err[-1000:]}")
        return result(folder, output)


def _together(folder: Path, lines: list[list[str]], output: str, alone: list[dict[str, str]]) -> str:
    with tempfile.TemporaryDirectory() as logs:
        start = time.time() + 0.2
        pids = [_begun(line, folder, Path(logs) / str(i), start) for i, line in enumerate(lines)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = [(Path(logs) / str(i)).read_text(encoding="utf-8") for i in range(len(lines))]
    winners = [i for i, code in enumerate(codes) if code == 0]
    if len(winners) != 1:
        return f"exit codes {codes}: {said[0].strip()[-200:]}"
    if result(folder, output) != alone[winners[0]]:
        return f"process {winners[0]} won, but its result is another than alone"
    for i, code in enumerate(codes):
        if i not in winners and (code != 2 or said[i].count("dnge: error: ") != 1):
            return f"a loser ends with {code}: {said[i].strip()[-300:]}"
    return f"half written: {left}" if (left := leftovers(folder)) else ""


def _begun(line: list[str], folder: Path, log: Path, start: float) -> int:
    """A process that runs a command from the moment `start` on."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(60)

    def work() -> int:
        time.sleep(max(0.0, start - time.time()))
        return dnge(*line)()

    done = forked(work, folder)
    log.write_text(done.err, encoding="utf-8")
    os._exit(done.code if done.code >= 0 else 97)
