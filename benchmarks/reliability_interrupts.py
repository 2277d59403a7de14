"""Ctrl-C and SIGTERM at random moments of real processes, from the first millisecond on."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from reliability_setting import CHEAP, Row, Setting, difference, leftovers, picture

MUST = "the signal's exit code, one line, nothing half written"
TIMES, EARLY_TIMES = 6, 40
EARLY = 0.4  # seconds
OURS = re.compile(r"/dnge_compress/([\w/]+\.py)")  # in a traceback
BEFORE = ("__init__.py", "__main__.py", "cli/__init__.py", "cli/start.py", "cli/signals.py")  # until signals are taken
ROOT = Path(__file__).resolve().parents[1]
SIGNALS = {"Ctrl-C": (signal.SIGINT, "dnge: interrupted"), "SIGTERM": (signal.SIGTERM, "dnge: terminated")}


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per signal and stretch of time."""
    found: dict[str, Callable[[], Row]] = {}
    for name in SIGNALS:
        found[f"{name} in the first {EARLY} s"] = partial(_interrupted, setting, name, is_early=True)
        found[f"{name} at any moment"] = partial(_interrupted, setting, name, is_early=False)
    return found


def _interrupted(setting: Setting, name: str, is_early: bool) -> Row:
    number, line = SIGNALS[name]
    draw, failed, pythons = random.Random(f"{setting.seed} {name} {is_early}"), [], 0
    times = setting.many(EARLY_TIMES if is_early else TIMES)
    with setting.trial("llama", "beside") as folder:
        start = time.perf_counter()
        _begun(folder).communicate()
        whole, before = time.perf_counter() - start, _others(folder)
    for _ in range(times):
        moment = draw.random() * (EARLY if is_early else whole)
        with setting.trial("llama", "beside") as folder:
            process = _begun(folder)
            time.sleep(moment)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            code, last = process.returncode, (err.strip().splitlines() or [""])[-1]
            if code in (1, -number) and all(file in BEFORE for file in OURS.findall(err)):
                pythons += 1
            elif code and (code != 128 + number or last != line or "Traceback" in err):
                failed.append(f"after {1000 * moment:.0f} ms: exit code {code}: {err.strip()[-300:]}")
            elif wrong := difference(before, _others(folder)) or leftovers(folder):
                failed.append(f"after {1000 * moment:.0f} ms: touched or left {wrong}")
    told = "came before signals were taken, or after Python gave them back, and ended it as any program of Python"
    note = f"{pythons} of {times} {told}" if pythons else ""
    return Row(part="interrupts", what="", must=MUST, tried=times, failed=tuple(failed), note=note)


def _others(folder: Path) -> dict[str, str]:
    return {name: there for name, there in picture(folder).items() if name.partition("/")[0] != "new"}


def _begun(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dnge_compress", "compress", "llama", "-o", "new", *CHEAP]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
