"""Who trains: this process, several that we start, or several that an outer launcher (torchrun, accelerate) started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from accelerate import PartialState

from dnge_compress.core.claims import is_alive
from dnge_compress.core.errors import DivergedError, DngeError, LaunchError
from dnge_compress.core.files import disk_errors, write_whole
from dnge_compress.core.launcher import ended_by_signals, is_rank0, launcher_world
from dnge_compress.core.progress import Progress, printed
from dnge_compress.core.strict_json import read_json
from dnge_compress.jobs.folder import JobFolder, at_work
from dnge_compress.jobs.models import uses_cpu
from dnge_compress.jobs.rates import Trial
from dnge_compress.jobs.rounds import of_round, with_fewer_tokens
from dnge_compress.jobs.training import train
from dnge_compress.recipes.job_schema import Job

Order: TypeAlias = tuple[str, Trial | None, int]  # a variant, how it is tried if it is no training to the end, a round
LEADER = "DNGE_JOB_LEADER"  # process id
LOOK_EVERY = 0.5  # seconds
LONGEST_STAGE = timedelta(days=7)  # how long the others wait while one process scores and prunes


@dataclass(frozen=True)
class Workers:
    """Trains a variant of the job by calling `train(variant, None)`, or tries a rate; see the three makers below."""

    train: Callable[[str, Trial | None], dict[str, str]]
    shutdown: Callable[[], None] = lambda: None


def workers_of(folder: JobFolder, job: Job, progress: Progress, number: int = 0) -> Workers:
    """What trains for this process, rank 0, in the job's last round or an early one. Raises LaunchError if an outer
    launcher's size isn't the recipe's."""
    world = launcher_world()
    if world is not None:
        _refuse_other_size(world[1], job)
        return _launched(folder, job, progress, number)
    folder, job = of_round(folder, job, number)
    if job.launch.num_processes == 1:
        return Workers(lambda variant, trial: train(folder, job, variant, progress, trial=trial))
    return Workers(partial(_train_in_processes, folder, job))


def follow_leader(folder: JobFolder, job: Job) -> None:
    """What a process that doesn't lead does: train whenever the leader says so, until it says stop."""
    world = launcher_world()
    assert world is not None
    _refuse_other_size(world[1], job)
    _join_group(job)
    while (order := _broadcast(None)) is not None:
        _share_threads(folder)
        train(*of_round(folder, job, order[2]), order[0], trial=order[1])


def main(arguments: list[str] | None = None) -> int:
    """`python -m dnge_compress.jobs.launching FOLDER VARIANT [RATE STEPS]`: one of several processes."""
    root, variant, *tried = arguments or sys.argv[1:]
    trial = Trial(float(tried[0]), int(tried[1])) if tried else None
    folder = JobFolder(Path(root))
    threading.Thread(target=_end_with, args=(int(os.environ[LEADER]),), daemon=True).start()
    try:
        with at_work(folder), disk_errors(folder.root):
            job = with_fewer_tokens(folder, folder.job())
            _share_threads(folder, job.launch.num_processes)
            obtained = train(folder, job, variant, printed, trial=trial)
    except DngeError as e:
        if is_rank0():
            write_whole(folder.failure(variant), json.dumps({"kind": type(e).__name__, "message": str(e)}))
        return 1
    if is_rank0():
        write_whole(folder.machine(variant), json.dumps(obtained))
    return 0


@contextmanager
def same_threads(folder: JobFolder) -> Iterator[None]:
    """Run the block with the number of CPU threads that the claimed folder records, and say so where it is another.

    Sums are rounded in an order that depends on it, so a job goes on with as many as it began with on any machine.
    """
    given, wanted = torch.get_num_threads(), folder.threads
    if given != wanted:
        print(f"dnge: goes on with {wanted} CPU threads, as the job began, instead of {given}", file=sys.stderr)
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(given)


def _share_threads(folder: JobFolder, processes: int = 1) -> None:
    """Give this process, one of so many that we started, its part of the job's threads, the same at every start."""
    torch.set_num_threads(max(1, folder.threads // processes))


def _launched(folder: JobFolder, job: Job, progress: Progress, number: int) -> Workers:
    _join_group(job)

    def order(variant: str, trial: Trial | None) -> dict[str, str]:
        _broadcast((variant, trial, number))
        return train(*of_round(folder, job, number), variant, progress, trial=trial)

    def shutdown() -> None:
        _broadcast(None)

    return Workers(order, shutdown)


def _train_in_processes(folder: JobFolder, job: Job, variant: str, trial: Trial | None) -> dict[str, str]:
    """Start the processes through torch's own launcher and wait for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={job.launch.num_processes}", "-m", __name__, str(folder.root), variant]
    command += [] if trial is None else [repr(trial.rate), str(trial.steps)]
    failure, machine = folder.failure(variant), folder.machine(variant)
    for path in (failure, machine):
        path.unlink(missing_ok=True)
    # Whatever libraries print belongs to stderr here: stdout is for the report.
    run = subprocess.run(command, stdout=sys.stderr.fileno(), env=os.environ | {LEADER: str(os.getpid())})
    if failure.is_file():
        found = read_json(failure)
        kind = DivergedError if found["kind"] == DivergedError.__name__ else LaunchError
        raise kind(found["message"])
    if run.returncode or not machine.is_file():
        raise LaunchError(
            f"the training in {job.launch.num_processes} processes failed (exit code {run.returncode}; see above); "
            "run the job again to go on from its last checkpoint"
        )
    return dict(read_json(machine))


def _end_with(leader: int) -> None:
    """A killed leader can't end its processes, and they would go on writing beside those of its next run."""
    while is_alive(leader):
        time.sleep(LOOK_EVERY)
    os._exit(1)


def _join_group(job: Job) -> None:
    with ended_by_signals():
        PartialState(cpu=uses_cpu(job), timeout=LONGEST_STAGE)


def _broadcast(order: Order | None) -> Order | None:
    """The leader's order, in every process; None is the end."""
    message: list[Any] = [order]
    dist.broadcast_object_list(message, src=0)
    return message[0]


def _refuse_other_size(processes: int, job: Job) -> None:
    if processes != job.launch.num_processes:
        raise LaunchError(
            f"launch.num_processes asks for {job.launch.num_processes}, but {processes} were launched; "
            f"set launch.num_processes={processes}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
