"""Jobs on the example model: recovery after pruning beside its rivals, resuming after kills, two processes as one.

    python benchmarks/jobs.py                  # hours of one core; writes results/jobs.{md,json}
    python benchmarks/jobs.py --only kills     # one part: recovery, rates, kills or processes

Every arm is `dnge run` in a process of its own, as a user would start it. Stopped and started again, it goes on: jobs
in --work that are finished are only read.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import recovery
import torch
from harness import RESULTS, put_in_readme
from job_processes import finished, judged, start
from recovery import SEEDS
from safetensors.torch import load_file

from dnge_compress.cli.main import DIVERGED

RATES = (1e-4, 1e-2, 1.0, 1e4, 1e10)
# Few steps, dense checkpoints: what is tested is the restart, not the model.
SHORT = [
    "scorer=obs",
    "calibration.tokens=2048",
    "datasets=[{type: sampled, tokens: 16384}]",
    "train.max_length=64",
    "train.max_steps=30",
    "train.save_steps=3",
    "train.eval_steps=6",
    "train.logging_steps=3",
    "train.per_device_train_batch_size=4",
    "lora.lora_dropout=0.1",
    "train.learning_rate=2e-3",
]


def main() -> None:
    """Run the parts asked for and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("recovery", "rates", "kills", "processes"))
    parser.add_argument("--work", type=Path, default=Path("runs/jobs"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--arms", default="", help="of the recovery: parts of their names, with semicolons between")
    parser.add_argument("--steps", type=int, default=0, help="of every training, instead of one pass over the rows")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    parts = {"recovery": recovery.measure, "rates": rates, "kills": kills, "processes": processes}
    stored = RESULTS / "jobs.json"
    for name, part in parts.items():
        if options.only in (None, name):
            result = part(options)
            # Read only now: another part may have been measured and written meanwhile.
            found: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else {}
            if name == "recovery":
                rows = found.get(name, {}) | result
                result = {arm: rows[arm] for arm in recovery.ARMS if arm in rows}
            found[name] = result
            stored.write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / "jobs.md").write_text("\n".join(table(found)) + "\n")
            if name == "recovery" and not options.steps and recovery.is_whole(result):
                put_in_readme("recovery", recovery.summary(found["recovery"]))
    print((RESULTS / "jobs.md").read_text())


def rates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Learning rates far off, in several seeds: the job stops, or leaves what is no worse than the pruned model."""
    found = []
    for seed in SEEDS[: options.seeds]:
        for rate in RATES:
            out = options.work / f"rate-{rate:g}-{seed}"
            told = [word for word in SHORT if "learning_rate" not in word]
            words = [*told, f"seed={seed}", f"train.learning_rate={rate!r}", "eval_fraction=0.2"]
            running = start("jobs/prune-recover", out, words)
            _, errors = running.communicate()
            if running.returncode not in (0, DIVERGED):
                raise SystemExit(errors.decode())
            row: dict[str, Any] = {"seed": seed, "rate": rate, "exit_code": running.returncode}
            if running.returncode == 0:
                row |= {"perplexity": judged(out)}
            found.append(row)
            print(row, file=sys.stderr, flush=True)
    return found


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill one job at random moments all through it, run it again each time, and compare with an unbroken one."""
    whole, torn = options.work / "unbroken", options.work / "killed"
    for folder in (whole, torn):
        shutil.rmtree(folder, ignore_errors=True)
    reference = finished("jobs/prune-recover", whole, SHORT)
    lengths = dict(reference.seconds)
    generator, moments = random.Random(0), []
    for share in sorted(generator.random() for _ in range(options.kills)):
        stage, inside = moment(share, lengths)
        running = start("jobs/prune-recover", torn, SHORT)
        wait_for(torn, stage, inside, lengths, running)
        running.kill()
        running.wait()
        moments.append({"stage": stage, "share_of_stage": round(inside, 2), "step": last_step(torn)})
        print(f"killed in {stage} ({inside:.0%}), last whole step {last_step(torn)}", file=sys.stderr, flush=True)
    report = finished("jobs/prune-recover", torn, SHORT)
    ours, theirs = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (torn, whole))
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    losses = [abs((a.loss or 0) - (b.loss or 0)) for a, b in zip(report.milestones, reference.milestones, strict=True)]
    same = report.curves == reference.curves
    return {"moments": moments, "adapter": apart, "loss": max(losses), "same_curves": same}


def moment(share: float, lengths: dict[str, float]) -> tuple[str, float]:
    """The stage, and the share of it, that stands at `share` of the whole job's time."""
    left = share * sum(lengths.values())
    for stage, seconds in lengths.items():
        if left < seconds:
            return stage, left / seconds
        left -= seconds
    return stage, 1.0


def wait_for(out: Path, stage: str, inside: float, lengths: dict[str, float], running: subprocess.Popen[bytes]) -> None:
    """Until the job has come that far: the stages before are done; in training, the steps before too."""
    before = list(lengths)[list(lengths).index(stage) - 1] if stage != next(iter(lengths)) else None
    while before and before not in done(out):
        assert running.poll() is None, "the job ended before its time"
        time.sleep(0.01)
    while stage == "train" and last_step(out) + 3 < inside * 30:
        assert running.poll() is None, "the job ended before its time"
        time.sleep(0.01)
    time.sleep(lengths[stage] * (inside if stage != "train" else 0.05 * inside) + (0 if before else 8.0))


def done(out: Path) -> list[str]:
    """The stages that a job has finished."""
    return [*json.loads((out / "job.json").read_text())["stages"]] if (out / "job.json").is_file() else []


def last_step(out: Path) -> int:
    """Of the newest whole checkpoint, or 0."""
    return max((int(p.parent.name.split("-")[1]) for p in out.glob("training/checkpoint-*/whole")), default=0)


def processes(options: argparse.Namespace) -> dict[str, Any]:
    """One process at batch 8 and two at 4: how far apart the adapters end."""
    # In float32: in bfloat16 the width of a batch alone rounds sums differently, by 1.6e-3 after these steps.
    told = [*(w for w in SHORT if "dropout" not in w and "batch" not in w), "dtype=float32"]
    one, two = options.work / "one-process", options.work / "two-processes"
    finished("jobs/prune-recover", one, [*told, "train.per_device_train_batch_size=8"])
    report = finished(
        "jobs/prune-recover", two, [*told, "train.per_device_train_batch_size=4", "launch.num_processes=2"]
    )
    ours, theirs = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (two, one))
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    largest = max(float(t.abs().max()) for t in theirs.values())
    return {"adapter": apart, "largest_weight": largest, "machine": dict(report.machine)}


def table(found: dict[str, Any]) -> list[str]:
    """What is known so far."""
    lines = ["# Jobs on the example model", ""]
    if "recovery" in found:
        lines += recovery.table(found["recovery"])
    if "rates" in found:
        done = [r for r in found["rates"] if r["exit_code"] == 0]
        worse = [r for r in done if r["perplexity"]["trained"] > r["perplexity"]["pruned"]]
        stopped = sum(r["exit_code"] == DIVERGED for r in found["rates"])
        lines += ["", f"Learning rates from {min(RATES):g} to {max(RATES):g}, {len(found['rates'])} short jobs: "]
        lines[-1] += (
            f"{stopped} stopped with exit code 5, {len(worse)} of the others left a model that is worse on these "
        )
        lines[-1] += "books than the pruned one."
    if "kills" in found:
        k = found["kills"]
        where = ", ".join(f"{m['stage']} {m['share_of_stage']:.0%}" for m in k["moments"])
        lines += ["", f"Killed (SIGKILL) at {len(k['moments'])} random moments ({where}) and run again each time: "]
        lines[-1] += f"adapter weights differ from the unbroken run's by {k['adapter']:.1e}, final losses by "
        lines[-1] += f"{k['loss']:.1e}, curves are {'equal' if k['same_curves'] else 'not equal'}."
    if "processes" in found:
        p = found["processes"]
        lines += [
            "",
            f"Two processes at batch 4 against one at 8: adapter weights differ by {p['adapter']:.1e} at most ",
        ]
        lines[-1] += (
            f"(largest weight {p['largest_weight']:.2g}); {p['machine']['strategy']} on {p['machine']['device']}."
        )
    return lines


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
