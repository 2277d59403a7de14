"""Whether this process is one of several that a launcher (torchrun, accelerate) started; the environment tells."""

from __future__ import annotations

import os


def launcher_world() -> tuple[int, int] | None:
    """(rank, processes) if an outer launcher started this process as one of several, else None."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ["RANK"]), processes) if processes > 1 and "RANK" in os.environ else None


def is_rank0() -> bool:
    """Whether this process is the only one, or the first of several."""
    world = launcher_world()
    return world is None or world[0] == 0
