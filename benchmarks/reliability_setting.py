"""What the parts of `reliability.py` share: tiny models in a folder, commands in forked processes, and pictures of
folders before and after.

Importing torch and transformers takes seconds, so a command runs in a fork of this process, which has imported them
all; it is the same `main` that `dnge` calls, in a process of its own that can be killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dnge_compress import load
from dnge_compress.cli import commands, job_running  # noqa: F401  # imported before the forks
from dnge_compress.cli.main import main

CHEAP = ("--set", "tokens=256", "--set", "length=16", "--scorer", "obs", "--recipe", "prune/neurons")
WORDS, VOCABULARY = 58, 61
HANG, CRASHED, OUTSIDE = "ran over its time", 99, 98
VOLATILE = (
    *("dnge_report.json", "dnge_files.json", "README.md", "job.json"),
    *("report.json", "report.md", "report.html", "machine.json"),
)
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: how often something was tried, and every time that it went wrong, in words."""

    part: str
    what: str
    must: str
    tried: int
    failed: tuple[str, ...] = ()
    note: str = ""
    seconds: float = 0.0
    seed: int = 0
    share: float = 1.0  # of the usual number of trials


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal's number), what it wrote, how long and large it was."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int

    @property
    def errors(self) -> list[str]:
        """The lines that say what is wrong."""
        return [line for line in self.err.splitlines() if line.startswith("dnge: error: ")]

    @property
    def said(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1][:200]


@dataclass
class FileWrites:
    """Counts what a process does to files, by Python's audit events; calls `at` the moment of one of them, before it
    happens, and refuses paths outside of the `allowed` folders, where there are any."""

    moment: int = -1
    at: Callable[[], None] = lambda: None
    allowed: tuple[Path, ...] = ()
    count: int = 0
    is_on: bool = True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of an event."""
        if not self.is_on or not _is_write(event, arguments):
            return
        if self.allowed and isinstance(arguments[0], str | bytes | os.PathLike):
            self._refuse_outside(os.fsdecode(arguments[0]))
        self.count += 1
        if self.count - 1 == self.moment:
            self.is_on = False
            self.at()
            self.is_on = True

    def _refuse_outside(self, path: str) -> None:
        self.is_on = False
        found = Path(path).absolute()
        found = found.parent.resolve() / found.name
        self.is_on = True
        if not any(found.is_relative_to(place) for place in self.allowed):
            os.write(2, f"wrote outside: {found}\n".encode())
            os._exit(OUTSIDE)


def _is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in WRITES


def forked(
    work: Callable[[], int],
    folder: Path,
    *,
    limit: float = 60.0,
    kill_after: float | None = None,
    writes: FileWrites | None = None,
    most_bytes: int | None = None,
) -> Ended:
    """Do `work` in a fork of this process whose folder is `folder`; it is killed `kill_after` seconds, or at `limit`.

    `most_bytes` bounds what it may allocate beyond what this process has.
    """
    with tempfile.TemporaryDirectory() as logs:
        out, err = Path(logs) / "out", Path(logs) / "err"
        start = time.perf_counter()
        pid = os.fork()
        if not pid:
            _child(work, folder, out, err, writes, most_bytes)
        end = start + (limit if kill_after is None else kill_after)
        while True:
            done, status, used = os.wait4(pid, os.WNOHANG)
            if done:
                break
            if time.perf_counter() >= end:
                os.killpg(pid, signal.SIGKILL) if _leads(pid) else os.kill(pid, signal.SIGKILL)
                _, status, used = os.wait4(pid, 0)
                break
            time.sleep(0.0005)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started
        seconds = time.perf_counter() - start
        texts = [f.read_text(encoding="utf-8", errors="replace") if f.exists() else "" for f in (out, err)]
    is_hung = os.WIFSIGNALED(status) and kill_after is None and seconds >= limit
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, texts[0], texts[1] + (f"\n{HANG}" if is_hung else ""), seconds, used.ru_maxrss * 1024)


def dnge(*words: str) -> Callable[[], int]:
    """The work of a command line."""
    return lambda: main(words)


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _child(
    work: Callable[[], int], folder: Path, out: Path, err: Path, writes: FileWrites | None, most_bytes: int | None
) -> None:
    code = CRASHED
    try:
        os.setsid()
        os.chdir(folder)
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        if most_bytes is not None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + most_bytes, size + most_bytes))
        if writes is not None:
            sys.addaudithook(writes)
        code = work()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def picture(folder: Path, but: Sequence[str] = (), home: Path | None = None) -> dict[str, str]:
    """Every file, folder and link below a folder with a hash of its content; names in `but` are left out, and the path
    of `home` counts as any other."""
    found = {}
    here = os.fsencode(home or folder)
    for path in sorted(folder.rglob("*")):
        if path.name in but:
            continue
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes().replace(here, b".")).hexdigest()
        else:
            found[name] = "folder"
    return found


def difference(before: dict[str, str], after: dict[str, str]) -> str:
    """The first names that two pictures disagree on; "" if none."""
    names = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return ", ".join(names[:4])


def leftovers(folder: Path) -> str:
    """Names of half-written things below a folder."""
    return ", ".join(
        str(p.relative_to(folder))
        for p in sorted(folder.rglob(".*"))
        if p.name.endswith((".part", ".dnge-old", ".dnge-lock")) or ".dnge-new-" in p.name
    )


@dataclass(frozen=True)
class Setting:
    """Tiny models and everything that commands read, in a folder; each trial gets a copy of it."""

    root: Path
    seed: int
    share: float = 1.0  # of the usual number of trials
    texts: dict[str, str] = field(default_factory=dict)

    def many(self, usual: int) -> int:
        """So many trials, or their share."""
        return max(1, round(usual * self.share))

    @contextmanager
    def trial(self, *names: str, on: Path | None = None) -> Iterator[Path]:
        """A folder with copies of some of the files and folders of the setting, which is taken away afterwards."""
        with tempfile.TemporaryDirectory(dir=on or self.root.parent) as place:
            folder = Path(place).resolve() / "work"
            folder.mkdir()
            for name in names:
                source = self.root / name
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
            yield folder


def build(root: Path, seed: int, share: float) -> Setting:
    """Make what commands read: a Llama of 20,000 weights with a tokenizer of words, rows, texts, plans, recipes."""
    root.mkdir(parents=True)
    torch.manual_seed(seed)
    config = dict(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=40, num_hidden_layers=3, pad_token_id=None)
    heads = dict(num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1)
    llama = LlamaForCausalLM(LlamaConfig(**config, **heads, eos_token_id=2, initializer_range=0.2))
    llama.eval().save_pretrained(root / "llama")
    draw = torch.Generator().manual_seed(seed)
    texts = [" ".join(f"w{int(i)}" for i in torch.randint(WORDS - 20, (60,), generator=draw)) for _ in range(40)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = ["<unk>", "<s>", "</s>"]
    words = [*texts, " ".join(f"w{i}" for i in range(WORDS))]
    tokenizer.train_from_iterator(words, BpeTrainer(vocab_size=VOCABULARY, special_tokens=marks, show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(root / "llama")
    (root / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    (root / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (root / "job.yaml").write_text(JOB, encoding="utf-8")
    (root / "mine.yaml").write_text("recipe: prune\nprune: {ratio: 0.3}\n", encoding="utf-8")
    _foreign(root)
    for made in (
        ("plan", "llama", "-o", "plan.json", "--ratio", "0.4", *CHEAP),
        ("place", "llama", "-o", "lora.json", "--set", "trainable_params=2000"),
        ("compress", "llama", "-o", "out", "--ratio", "0.2", *CHEAP),
        (
            "compress",
            "llama",
            "-o",
            "uneven",
            "--ratio",
            "0.3",
            *CHEAP,
            "--set",
            "uneven=true",
            "--set",
            "allocation=global",
            "--set",
            "of=parameters",
        ),
        ("vocabulary", "llama", "--data", "texts.txt", "-o", "words"),
    ):
        done = forked(dnge(*made), root)
        if done.code:
            raise SystemExit(f"the setting can't be made: dnge {' '.join(made)}: {done.err[-2000:]}")
    if not (root / "uneven" / "dnge_base_config.json").is_file() or not load(root / "uneven").dnge.plan.uneven:
        raise SystemExit("the setting can't be made: the uneven model came out even")
    return Setting(root, seed, share)


def _foreign(root: Path) -> None:
    """Files that are nobody's business, some with names much like ours."""
    for name in ("thesis.txt", ".out.notes", "out.part", ".lora.json.1.mine", ".out.dnge-newest", "job.bak/data.txt"):
        (root / "beside" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "beside" / name).write_text(f"mine: {name}", encoding="utf-8")


JOB = """\
recipe: job
model_name_or_path: ./llama
output_dir: job
scorer: magnitude
calibration: {tokens: 256, length: 16}
prune: {ratio: 0.3, of: units, kinds: [neuron]}
lora: {budget: {match_uniform_r: 2}, placer: stable_rank, lora_dropout: 0.1}
datasets: [{path: ./rows.jsonl}]
eval_fraction: 0.2
train: {max_length: 32, max_steps: 8, per_device_train_batch_size: 2, learning_rate: 0.05, logging_steps: 3,
  eval_steps: 4, save_steps: 2, use_cpu: true}
"""
