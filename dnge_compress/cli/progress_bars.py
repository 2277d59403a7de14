"""Progress of a command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.progress import Progress
from dnge_compress.core.progress_bars import bars


@contextmanager
def session() -> Iterator[Progress]:
    """No chatter from transformers, and a function to report progress with; what models, trackers or workers print
    goes to stderr, since stdout is for data."""
    with quiet(), redirect_stdout(sys.stderr), bars() as progress:
        yield progress
