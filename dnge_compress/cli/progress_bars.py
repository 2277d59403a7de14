"""Progress of a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.progress import Progress
from dnge_compress.core.progress_bars import bars


@contextmanager
def session() -> Iterator[Progress]:
    """No chatter from transformers, and a function to report progress with."""
    with quiet(), bars() as progress:
        yield progress
