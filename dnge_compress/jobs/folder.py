"""The folder of a job: where everything lies, which stages are done, and that it belongs to one recipe and one run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dnge_compress.checkpoint.model_files import RESULT
from dnge_compress.core.claims import claimed
from dnge_compress.core.errors import CheckpointError, RecipeError
from dnge_compress.core.files import read_text, write_whole
from dnge_compress.core.strict_json import read_json, read_strictly
from dnge_compress.recipes.job_schema import Job, Train
from dnge_compress.recipes.library import load

if TYPE_CHECKING:
    from dnge_compress.lora.plan import LoraPlan

VERSION = 1
STATE, RECIPE, REPORT = "job.json", "recipe.yaml", "report.json"
LOCK, WORKERS = ".lock", ".workers"
AT_FIRST = (LOCK, WORKERS, RECIPE)
PATIENCE = 20.0  # seconds for the processes of a killed run to end
UNIMPORTANT = ("name", "about", "output_dir")  # may differ between two runs of one job
BEFORE_TRAINING = ("vocabulary", "data", "prune", "place")  # stages that don't depend on how the model is trained
OF_ROWS = ("max_length", "packing")  # the keys of `train` that they depend on


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What `job.json` holds; the facts of a stage are that stage's own."""

    dnge_job: int
    identity: str
    stages: Mapping[str, Mapping[str, Any]]
    threads: int = 1


class JobFolder:
    """Paths inside `root`, and the record of what is done. Nothing is made before `claim`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe, self.state = root / RECIPE, root / STATE  # the resolved recipe, and the record of stages done
        self.fewer_tokens = root / "vocabulary"  # the original without the tokens that go
        self.pruned = root / "pruned"  # the model before training
        self.model = root / RESULT  # the job's result, an ordinary checkpoint
        self.trials = root / "trials"  # while a learning rate is looked for
        self.train_rows = root / "data" / "train.safetensors"
        self.held_out_rows = root / "data" / "held_out.safetensors"
        self.flat_adapter = root / "flat_adapter"  # zero-padded to one rank

    def round(self, number: int) -> JobFolder:
        """The folder of an early round."""
        return JobFolder(self.root / f"round-{number}")

    @property
    def rounds(self) -> list[Path]:
        """What early rounds have left; other folders of such names are somebody else's."""
        return [path for path in self.root.glob("round-*") if (path / STATE).is_file()]

    def lora_plan(self, variant: str = "") -> Path:
        """The placement of a variant: "" is the job's own, others are named by their placer."""
        return self.root / f"lora_plan{_suffix(variant)}.json"

    def read_lora_plan(self, variant: str = "") -> LoraPlan:
        """The placement of a variant as a value. Raises PlanError naming the file."""
        from dnge_compress.lora.plan import LoraPlan  # here, since torch takes seconds to import

        path = self.lora_plan(variant)
        return LoraPlan.from_json(read_text(path), f"'{path}'")

    def adapter(self, variant: str = "") -> Path:
        """The trained adapter of a variant."""
        return self.root / f"adapter{_suffix(variant)}"

    def training(self, variant: str = "") -> Path:
        """Folder of a variant's checkpoints."""
        return self.root / f"training{_suffix(variant)}"

    def best(self, variant: str = "") -> Path:
        """What did best on the held-out rows so far, that before the first step included."""
        return self.training(variant) / "best"

    def trial(self, rate: float, variant: str = "") -> Path:
        """Folder of a short training of a variant at a learning rate."""
        return self.trials / f"{rate:g}{_suffix(variant)}"

    def trial_loss(self, rate: float, variant: str = "") -> Path:
        """The loss on held-out rows after a short training."""
        return self.trial(rate, variant) / "loss.json"

    def read_rate(self, settings: Train, variant: str = "") -> float:
        """The learning rate that the recipe says, or that was found for a variant."""
        if settings.learning_rate != "auto":
            return settings.learning_rate
        found = self.done("rate")
        assert found is not None
        return float((found["compared"][variant] if variant else found)["learning_rate"])

    def failure(self, variant: str = "") -> Path:
        """What the processes of a training failed with."""
        return self.training(variant) / "failed.txt"

    def machine(self, variant: str = "") -> Path:
        """What the processes of a training ran on."""
        return self.training(variant) / "machine.json"

    def curve(self, variant: str = "") -> Path:
        """The losses of a variant along its training."""
        return self.training(variant) / "curve.json"

    def read(self) -> dict[str, Any]:
        """The record: identity, seconds and facts of every stage done. Raises CheckpointError if it's broken."""
        if not self.state.is_file():
            return {"dnge_job": VERSION, "identity": "", "threads": 1, "stages": {}}
        raw = read_json(self.state)
        if not isinstance(raw, dict) or raw.get("dnge_job") != VERSION:
            raise CheckpointError(f"'{self.state}' is not a job of version {VERSION}; name another output_dir")
        read_strictly(_Record, raw, f"'{self.state}'")
        return raw

    def write(self, record: Mapping[str, Any]) -> None:
        """Put a record in the place of the one that is there; survives a kill at any moment."""
        write_whole(self.state, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def done(self, stage: str) -> Mapping[str, Any] | None:
        """What a finished stage recorded, or None if it isn't finished."""
        return self.read()["stages"].get(stage)

    def finish(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Record a stage as done; survives a kill at any moment."""
        record = self.read()
        record["stages"][stage] = dict(facts)
        self.write(record)

    def forget(self, stages: Sequence[str], variants: Sequence[str]) -> None:
        """Take stages for not done, the first of them last, and away what trainings of variants left in between.

        Killed at any moment, it is begun again as long as the first stage, whose facts tell why, is recorded as done.
        """
        self._drop(stages[1:])
        for path in (*map(self.training, variants), self.trials, self.fewer_tokens):
            if path.is_dir():
                shutil.rmtree(path)
        for path in self.rounds:
            JobFolder(path).remove()
        self._drop(stages)

    def remove(self) -> None:
        """Take the folder away, the record last: as long as anything is there, it is known as a job's."""
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.state:
                path.unlink()
        self.state.unlink(missing_ok=True)
        self.root.rmdir()

    def _drop(self, stages: Sequence[str]) -> None:
        record = self.read()
        record["stages"] = {name: facts for name, facts in record["stages"].items() if name not in stages}
        self.write(record)

    @property
    def threads(self) -> int:
        """How many CPU threads the job began with; 1 where that isn't recorded."""
        return int(self.read().get("threads", 1))

    def job(self) -> Job:
        """The resolved recipe that lies in the folder."""
        found = load(self.recipe)
        assert isinstance(found, Job)
        return found


def is_of_a_start(path: Path) -> bool:
    """Whether a claim that was killed may have left this in a job's folder."""
    return path.name in AT_FIRST or path.suffix == ".part"


def refuse(folder: JobFolder, job: Job) -> None:
    """Raise RecipeError if the folder holds another job's output, CheckpointError if it holds something else."""
    root = folder.root
    if root.exists() and not root.is_dir():
        raise CheckpointError(f"output_dir '{root}' is a file; name a folder")
    if not root.is_dir() or all(map(is_of_a_start, root.iterdir())):
        return  # nothing yet, or what a claim that was killed leaves
    if not folder.state.is_file():
        raise CheckpointError(f"output_dir '{root}' exists and holds no job of ours; name another")
    is_ours = folder.read()["identity"] == identity(job)
    if not (is_ours or _is_free(folder) or _is_same_but_training(folder, job)):
        changed = _difference(folder.job(), job) if folder.recipe.is_file() else ""
        raise RecipeError(
            f"output_dir '{root}' belongs to another recipe{changed}; name another output_dir, or delete it"
        )


@contextmanager
def claim(folder: JobFolder, job: Job, versions: Mapping[str, str], threads: int) -> Iterator[None]:
    """Make the folder this job's own while the block runs; two runs at once are an error. Raises CheckpointError.

    `versions` of packages and the number of CPU `threads` are recorded when the job begins.
    """
    with claimed(folder.root, folder.root / LOCK, what="run"):
        refuse(folder, job)
        outlive_workers(folder)
        head = "".join(f"# {name} {version}\n" for name, version in versions.items())
        if folder.read()["identity"] != identity(job):
            done = folder.read()["stages"] if _is_same_but_training(folder, job) else {}
            record = {"dnge_job": VERSION, "identity": "", "threads": threads}
            record["stages"] = {name: facts for name, facts in done.items() if name in BEFORE_TRAINING}
            # Stages first: killed before the end, nothing that another recipe made counts as this one's.
            folder.write(record)
            write_whole(folder.recipe, head + yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
            record["identity"] = identity(job)
            folder.write(record)
            if folder.trials.is_dir():
                shutil.rmtree(folder.trials)
        yield


@contextmanager
def at_work(folder: JobFolder) -> Iterator[None]:
    """Held by every process that a run started, so that no other run begins before they are gone."""
    with (folder.root / WORKERS).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def outlive_workers(folder: JobFolder) -> None:
    """Wait for the processes that a killed run left at work in the folder. Raises CheckpointError where they stay."""
    deadline = time.monotonic() + PATIENCE
    with (folder.root / WORKERS).open("w") as lock:
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"processes of an earlier run are still at work in '{folder.root}'; stop them first"
                    ) from None
                time.sleep(0.2)


def _is_free(folder: JobFolder) -> bool:
    """Whether nothing that took long lies there yet: a first try that failed doesn't bind the folder to its recipe."""
    began = any(stage.startswith(("prune", "round")) for stage in folder.read()["stages"])
    return not (began or _has_trained(folder) or folder.rounds or (folder.root / REPORT).is_file())


def _has_trained(folder: JobFolder) -> bool:
    is_done = any(stage.startswith("train") for stage in folder.read()["stages"])
    return is_done or any(folder.root.glob("training*/checkpoint-*"))


def _is_same_but_training(folder: JobFolder, job: Job) -> bool:
    """Whether the folder's recipe and another differ in how to train alone, and nothing is trained yet: what was pruned
    and placed stays of use then. Early rounds train."""
    if not folder.read()["stages"] or _has_trained(folder) or folder.rounds:
        return False
    return _but_training(folder.job()) == _but_training(job)


def _but_training(job: Job) -> Any:
    found = {k: v for k, v in job.model_dump(mode="json").items() if k not in (*UNIMPORTANT, "launch", "distill")}
    return found | {"train": {k: v for k, v in (found["train"] or {}).items() if k in OF_ROWS}}


def identity(job: Job, within: Path | None = None) -> str:
    """A hash of everything in the recipe that decides the result; paths `within` a folder may move with it."""
    values = {k: v for k, v in job.model_dump(mode="json").items() if k not in UNIMPORTANT}
    text = json.dumps(values, sort_keys=True)
    if within is not None:
        text = text.replace(json.dumps(f"{within}/")[:-1], '"')
    return hashlib.sha256(text.encode()).hexdigest()


def _suffix(variant: str) -> str:
    return f"-{variant}" if variant else ""


def _difference(old: Job, new: Job) -> str:
    """The first key that two recipes disagree on, in words."""
    before, after = (_flat(j.model_dump(mode="json")) for j in (old, new))
    for key in [*after, *before]:
        if key not in UNIMPORTANT and before.get(key) != after.get(key):
            return f" ({key} was {before.get(key)!r}, now {after.get(key)!r})"
    return ""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict | list) or not value:
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
