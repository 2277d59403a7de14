"""How the command behaves when something goes wrong: bad input, kills, full disks, races, noise, hostile checkpoints.

    python benchmarks/reliability.py                       # every part, about half an hour on one core
    python benchmarks/reliability.py --only kills disk     # some of them
    python benchmarks/reliability.py --again --seed 1      # measure rows anew that are there already

Rows without failures are kept in results/reliability.json, so that a run that was stopped goes on where it was.
The exit code is 1 if anything went wrong that must not; the rows say what.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.dont_write_bytecode = True

# What is set above is read once, when these are imported.
import reliability_disks  # noqa: E402
import reliability_fuzz  # noqa: E402
import reliability_hostile  # noqa: E402
import reliability_inputs  # noqa: E402
import reliability_interrupts  # noqa: E402
import reliability_kills  # noqa: E402
import reliability_races  # noqa: E402
import reliability_repeats  # noqa: E402
import reliability_shells  # noqa: E402
import torch  # noqa: E402
from harness import keep_rows, kept_rows, markdown, write  # noqa: E402
from reliability_setting import Row, Setting, build  # noqa: E402

Measure = Callable[[], Row]
PARTS: dict[str, tuple[str, Callable[[Setting], dict[str, Measure]]]] = {
    "inputs": ("Bad input", reliability_inputs.rows),
    "kills": ("Killed and run again", reliability_kills.rows),
    "disk": ("A full disk", reliability_disks.rows),
    "races": ("Several processes on one output", reliability_races.rows),
    "fuzz": ("Noise", reliability_fuzz.rows),
    "hostile": ("Hostile checkpoints", reliability_hostile.rows),
    "repeats": ("The same again, in one process", reliability_repeats.rows),
    "interrupts": ("Interrupted", reliability_interrupts.rows),
    "shells": ("Completion", reliability_shells.rows),
}
MOST_SHOWN = 20  # failures of a row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what isn't measured yet, write the table; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    chosen = options.only or list(PARTS)
    with tempfile.TemporaryDirectory(prefix="reliability-") as place:
        os.environ["HF_HOME"] = str(Path(place) / "hub")
        setting = build(Path(place).resolve() / "setting", options.seed, options.share)
        found = [Row(**{**raw, "failed": tuple(raw["failed"])}) for raw in kept_rows(options.name)]
        for part in chosen:
            found = _measured(part, setting, found, options)
    _write(options.name, found)
    wrong = [row for row in found if row.failed and row.part in chosen]
    for row in wrong:
        print(f"{row.part}: {row.what}: {len(row.failed)} of {row.tried} failed", file=sys.stderr)
    return 1 if wrong else 0


def _measured(part: str, setting: Setting, found: list[Row], options: argparse.Namespace) -> list[Row]:
    keys = [(name, what) for name, (_, rows) in PARTS.items() for what in rows(setting)]
    order = {key: place for place, key in enumerate(keys)}
    for what, measure in PARTS[part][1](setting).items():
        kept = next((row for row in found if (row.part, row.what) == (part, what)), None)
        is_kept = kept is not None and (kept.seed, kept.share) == (options.seed, options.share) and not kept.failed
        if is_kept and not options.again:
            continue
        start = time.perf_counter()
        row = replace(measure(), part=part, what=what, seed=options.seed, share=options.share)
        row = replace(row, seconds=round(time.perf_counter() - start, 1))
        print(f"{part}: {what}: {len(row.failed)} of {row.tried} failed, {row.seconds} s", file=sys.stderr, flush=True)
        for line in row.failed[:MOST_SHOWN]:
            print(f"    {line}", file=sys.stderr, flush=True)
        found = [*(r for r in found if r is not kept), row]
        found.sort(key=lambda r: order.get((r.part, r.what), len(order)))
        keep_rows(options.name, [asdict(r) for r in found])
    return found


def _write(name: str, found: Sequence[Row]) -> None:
    lines: list[str] = []
    for part, (title, _) in PARTS.items():
        mine = [row for row in found if row.part == part]
        if not mine:
            continue
        table = [
            (r.what, f"{r.tried:,}", f"**{len(r.failed):,}**" if r.failed else "none", f"{r.seconds:.0f}", r.note)
            for r in mine
        ]
        heads = ("what", "tried", "failed", "s", "")
        lines += [f"## {title}", "", f"Must: {mine[0].must}.", "", *markdown(heads, table), ""]
        lines += [f"- **failed**, {row.what}: {line}" for row in mine for line in row.failed[:MOST_SHOWN]]
        lines += [""] if any(row.failed for row in mine) else []
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in found}))
    total = sum(row.seconds for row in found) / 60
    machine = f"{platform.machine()}, {os.cpu_count()} cores of which one was used, Python {platform.python_version()}"
    lines += [f"Seed {seeds}; {total:.0f} minutes; {machine}, torch {torch.__version__}."]
    write(name, "Reliability", lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of trials")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--name", default="reliability", help="of the files in results/")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
