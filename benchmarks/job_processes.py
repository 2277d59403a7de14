"""A job on the example model in a process of its own, as a user starts it, and how good its models are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from harness import DATA
from transformers import AutoTokenizer

from dnge_compress import open_model
from dnge_compress.jobs.report.job_report import JobReport

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
from perplexity import perplexity  # noqa: E402

BOOKWORM = EXAMPLES / "bookworm"
JUDGED = 120_000  # characters of each held-out book, which no job sees


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


def judged(out: Path) -> dict[str, float]:
    """Perplexity of a job's models on the held-out books."""
    text = "\n\n".join(book[:JUDGED] for book in pq.read_table(DATA / "books_valid.parquet").column("text").to_pylist())
    tokenizer = AutoTokenizer.from_pretrained(BOOKWORM)
    places = {"original": BOOKWORM, "pruned": out / "pruned", "trained": out / "model"}
    return {
        name: perplexity(open_model(place, dtype="float32").eval(), tokenizer, text) for name, place in places.items()
    }
