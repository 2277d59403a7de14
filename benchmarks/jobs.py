"""Jobs on the example model: recovery after pruning beside its rivals, resuming after kills, two processes as one.

    python benchmarks/jobs.py                  # hours of one core; writes results/jobs.{md,json}
    python benchmarks/jobs.py --only kills     # one part: recovery, rates, kills or processes

Every arm is `dnge run` in a process of its own, as a user would start it. Stopped and started again, it goes on: jobs
in --work that are finished are only read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from harness import DATA, RESULTS, markdown
from safetensors.torch import load_file
from scipy.stats import t as student
from transformers import AutoTokenizer

from dnge_compress import open_model
from dnge_compress.cli.main import DIVERGED
from dnge_compress.core.precision import has_bfloat16
from dnge_compress.jobs.report.job_report import JobReport

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
from perplexity import perplexity  # noqa: E402

BOOKWORM = EXAMPLES / "bookworm"
JUDGED = 120_000  # characters of each held-out book, which no job sees
SEEDS = (0, 1, 2)
RATES = (1e-4, 1e-2, 1.0, 1e4, 1e10)
BOOK_TOKENS = 1_048_576  # of real text: twelve minutes of two cores that have no instructions for bfloat16
CHARACTERS_PER_TOKEN = 4.2
# All weights, which train in float32 otherwise, at half the speed where the processor has instructions for bfloat16.
WHOLE = ["~lora", f"train.bf16={'true' if has_bfloat16() else 'false'}"]
# More text: without scores, repair and a teacher, the same would take fewer minutes than ours.
RIVAL = ["scorer=magnitude", "repair.compensate=none", "~distill"]
# Recipe of ours or a rival's, the texts it learns from, and of books how many times BOOK_TOKENS. Every arm finds its
# learning rate by the same trials.
ARMS: dict[str, tuple[list[str], str, float]] = {
    "prune-recover on its own samples": ([], "sampled", 1),
    "prune-recover on real books": ([], "books", 1),
    "prune-recover of all weights on real books": (WHOLE, "books", 1),
    # Less text than the rival has, for the minutes of scoring, repair and their trials.
    "prune-recover of all weights without a teacher on real books": ([*WHOLE, "~distill"], "books", 1.4),
    "prune-recover with uneven widths on its own samples": (["prune.uneven=true"], "sampled", 1),
    "prune-recover with uneven widths on real books": (["prune.uneven=true"], "books", 1),
    "prune-recover on both": ([], "both", 1),
    "without a teacher, on its own samples": (["~distill"], "sampled", 1),
    "without a teacher, on real books": (["~distill"], "books", 1),
    "magnitude, uniform LoRA on real books": (RIVAL, "books", 1.5),
    "magnitude, all weights on real books": ([*RIVAL, *WHOLE], "books", 2),
}
RECOVERY_NOTES = (
    "Books that no job saw. LoRA at the cost of uniform rank 64. One epoch for all; what has no teacher reads",
    "as many more books as the minutes allow. bookworm had seen six tenths of its training books once, so new",
    "ones teach it more than it knew. Every arm finds its learning rate by short trials. Minutes by the clock,",
    "one thread, another such job beside.",
)
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
    parts = {"recovery": recovery, "rates": rates, "kills": kills, "processes": processes}
    stored = RESULTS / "jobs.json"
    for name, part in parts.items():
        if options.only in (None, name):
            result = part(options)
            # Read only now: another part may have been measured and written meanwhile.
            found: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else {}
            if name == "recovery":
                rows = found.get(name, {}) | result
                result = {arm: rows[arm] for arm in (*ARMS, *rows) if arm in rows}
                found.pop("remarks", None)  # what was said of another run
            found[name] = result
            stored.write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / "jobs.md").write_text("\n".join(table(found)) + "\n")
    print((RESULTS / "jobs.md").read_text())


def recovery(options: argparse.Namespace) -> dict[str, Any]:
    """The arms asked for in every seed: perplexities on books that no job saw, before, after pruning and after
    training; minutes."""
    found: dict[str, Any] = {}
    for seed in SEEDS[: options.seeds]:
        for arm, (told, text, times) in arms_named(options.arms).items():
            books = options.work / f"books-{seed}-{times:g}.txt"
            if not books.is_file():
                books.write_text(excerpts(seed, round(times * BOOK_TOKENS)), encoding="utf-8")
            sources = {
                "sampled": "datasets=[{type: sampled}]",
                "books": f"datasets=[{{path: {books.absolute()}}}]",
                "both": f"datasets=[{{type: sampled}}, {{path: {books.absolute()}}}]",
            }
            out = options.work / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
            words = [*told, *length(options), f"seed={seed}", f"calibration.seed={seed}", sources[text]]
            report = finished("jobs/prune-recover", out, words)
            seconds = sum(report.seconds.values())
            named = judged(out)
            tokens = report.rows["train tokens"]
            run = {"seed": seed, "seconds": seconds, "perplexity": named, "tokens": tokens}
            found.setdefault(arm, []).append(run)
            print(f"{arm}/{seed}: {named}, {seconds / 60:.1f} minutes", file=sys.stderr, flush=True)
    return found


def arms_named(parts: str) -> dict[str, tuple[list[str], str, float]]:
    """The arms whose names hold one of the parts, with semicolons between. Raises SystemExit for a part of none."""
    named = [part.strip() for part in parts.split(";")]
    for part in named:
        if not any(part in arm for arm in ARMS):
            raise SystemExit(f"--arms: '{part}' is in the name of no arm; they are: {'; '.join(ARMS)}")
    return {arm: told for arm, told in ARMS.items() if any(part in arm for part in named)}


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


def judged(out: Path) -> dict[str, float]:
    """Perplexity of a job's models on the held-out books."""
    text = "\n\n".join(book[:JUDGED] for book in pq.read_table(DATA / "books_valid.parquet").column("text").to_pylist())
    tokenizer = AutoTokenizer.from_pretrained(BOOKWORM)
    places = {"original": BOOKWORM, "pruned": out / "pruned", "trained": out / "model"}
    return {
        name: perplexity(open_model(place, dtype="float32").eval(), tokenizer, text) for name, place in places.items()
    }


def length(options: argparse.Namespace) -> list[str]:
    """Overrides that make trainings as long as asked for."""
    return [f"train.max_steps={options.steps}"] if options.steps else []


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


def start(recipe: str, out: Path, told: list[str]) -> subprocess.Popen[bytes]:
    """`dnge run` in a process of its own."""
    command = [sys.executable, "-m", "dnge_compress", "run", recipe, f"model_name_or_path={BOOKWORM}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, f"output_dir={out}", *told], **quiet)  # type: ignore[call-overload, no-any-return]


def finished(recipe: str, out: Path, told: list[str]) -> JobReport:
    """Run a job to its end, or read what it left if it is there."""
    running = start(recipe, out, told)
    _, errors = running.communicate()
    if running.returncode:
        raise SystemExit(errors.decode())
    return JobReport.from_dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


def excerpts(seed: int, tokens: int) -> str:
    """Parts of the training books, from random places, of about so many tokens in all."""
    texts = pq.read_table(DATA / "books_train.parquet").column("text").to_pylist()
    generator = random.Random(seed)
    each = int(tokens * CHARACTERS_PER_TOKEN / len(texts))
    parts = []
    for text in texts:
        first = generator.randrange(max(1, len(text) - each))
        parts.append(text[first : first + each])
    return "\n\n".join(parts)


def against_ours(recovery: dict[str, list[dict[str, Any]]]) -> list[str]:
    """By how much more perplexity the rivals end with than we do on real books, seed by seed, in 95 % intervals."""
    ended = {arm: {run["seed"]: run["perplexity"]["trained"] for run in runs} for arm, runs in recovery.items()}
    on_books = [arm for arm in ended if arm in ARMS and ARMS[arm][1] == "books"]
    rivals = [arm for arm in on_books if arm.startswith("magnitude")]
    lines = []
    for rival, ours in itertools.product(rivals, (arm for arm in on_books if arm not in rivals)):
        more = [ended[rival][seed] - ended[ours][seed] for seed in ended[rival].keys() & ended[ours].keys()]
        if len(more) > 1:
            mean, spread = statistics.fmean(more), statistics.stdev(more) / math.sqrt(len(more))
            reach = float(student.ppf(0.975, len(more) - 1)) * spread
            lines.append(
                f"- {rival}: {mean:+.2f} ({mean - reach:+.2f} to {mean + reach:+.2f}, {len(more)} seeds) against {ours}"
            )
    return [*lines, ""] if lines else []


def table(found: dict[str, Any]) -> list[str]:
    """What is known so far."""
    lines = ["# Jobs on the example model", ""]
    if "recovery" in found:
        rows = []
        for arm, runs in found["recovery"].items():
            cells = [arm]
            before = runs[0]["perplexity"]["original"]
            for name in ("pruned", "trained"):
                values = [r["perplexity"][name] for r in runs]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.2f}{spread}")
            after = statistics.fmean(r["perplexity"]["trained"] for r in runs)
            minutes = statistics.fmean(r["seconds"] for r in runs) / 60
            tokens = f"{statistics.fmean(r['tokens'] for r in runs) / 1e6:.2f} M"
            rows.append([*cells, f"{100 * (after / before - 1):+.1f} %", tokens, str(len(runs)), f"{minutes:.1f}"])
        changed = ["perplexity after pruning", "after recovery", "against the original"]
        head = ["arm", *changed, "tokens trained on", "seeds", "minutes"]
        lines += [f"30 % of the non-embedding parameters removed. Unpruned: {before:.2f}.", "", *markdown(head, rows)]
        lines += ["", *against_ours(found["recovery"]), *RECOVERY_NOTES, *found.get("remarks", ())]
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
