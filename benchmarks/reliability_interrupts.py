"""Ctrl-C and SIGTERM at random moments of real processes, from the first millisecond on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from reliability_setting import CHEAP, Row, Setting, difference, leftovers, picture

MUST = "the signal's exit code, one line, nothing half written"
TIMES, EARLY_TIMES = 15, 40
EARLY = 0.4  # seconds
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
    draw, failed, before_python = random.Random(f"{setting.seed} {name} {is_early}"), [], 0
    times = setting.many(EARLY_TIMES if is_early else TIMES)
    with setting.trial("llama", "beside") as folder:
        start = time.perf_counter()
        _begun(folder).communicate()
        whole, before = time.perf_counter() - start, picture(folder)
    for _ in range(times):
        moment = draw.random() * (EARLY if is_early else whole)
        with setting.trial("llama", "beside") as folder:
            process = _begun(folder)
            time.sleep(moment)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            code, last = process.returncode, (err.strip().splitlines() or [""])[-1]
            if code == 0 or (code == -number and not err):  # it was done; or Python itself hadn't begun
                before_python += code != 0
                continue
            wrong = (
                ""
                if code == 128 + number and last == line and "Traceback" not in err
                else f"exit code {code}: {err.strip()[-300:]}"
            )
            after = {k: v for k, v in picture(folder).items() if k.partition("/")[0] != "new"}
            wrong = wrong or difference({k: v for k, v in before.items() if k.partition("/")[0] != "new"}, after)
            wrong = wrong or leftovers(folder)
            failed += [f"after {1000 * moment:.0f} ms: {wrong}"] if wrong else []
    note = (
        f"{before_python} of {times} came before Python had begun, and ended the process as they end any"
        if before_python
        else ""
    )
    return Row(part="interrupts", what="", must=MUST, tried=times, failed=tuple(failed), note=note)


def _begun(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dnge_compress", "compress", "llama", "-o", "new", *CHEAP]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
