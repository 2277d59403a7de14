"""The same work again and again in one process: memory stays flat, and the result is the same."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from reliability_setting import Row, Setting, forked

import dnge_compress

TIMES, WARM = 100, 20
MOST_GROWTH = 16 << 20  # bytes, from the twentieth time to the last


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per verb."""
    verbs: dict[str, Callable[[Path], Any]] = {
        "`compress` and `save`": _saved,
        "`place_lora`": lambda folder: dnge_compress.place_lora(str(folder / "llama")).to_json(),
    }
    return {what: partial(_repeated, setting, verb) for what, verb in verbs.items()}


CHEAP: dict[str, Any] = {"tokens": 256, "length": 16, "scorer": "obs", "ratio": 0.3}


def _saved(folder: Path) -> str:
    small = dnge_compress.compress(str(folder / "llama"), "prune/neurons", **CHEAP)
    out = dnge_compress.save(small, folder / "new")
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def _repeated(setting: Setting, verb: Callable[[Path], Any]) -> Row:
    times = max(setting.many(TIMES), WARM + 2)

    with setting.trial("llama") as folder:

        def work() -> int:
            results, sizes = set(), []
            for _ in range(times):
                results.add(verb(folder))
                gc.collect()
                sizes.append(_resident())
            print(len(results), sizes[WARM - 1], sizes[-1], max(sizes), len(list(Path("/proc/self/fd").iterdir())))
            return 0

        done = forked(work, folder, limit=600)
    if done.code:
        failed = [done.err[-500:]]
        return Row(part="repeats", what="", must="", tried=times, failed=tuple(failed))
    results, before, after, _, open_files = map(int, done.out.split())
    grown = after - before
    failed = [f"{results} different results"] * (results > 1)
    failed += [f"memory grew by {grown / 2**20:.1f} MB from the {WARM}th time to the last"] * (grown > MOST_GROWTH)
    failed += [f"{open_files} files are open at the end"] * (open_files > 20)
    more = f"{'+' if grown >= 0 else '−'}{abs(grown) / 2**20:.1f} MB"
    note = f"memory {more} from the {WARM}th time to the last, of {after / 2**20:.0f} MB"
    must = f"the same result; less than {MOST_GROWTH >> 20} MB more, no more files open"
    return Row(part="repeats", what="", must=must, tried=times, failed=tuple(failed), note=note)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
