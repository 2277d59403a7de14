"""Paths of modules and tensors: the stack of blocks they stand in, and what lies around them."""

from __future__ import annotations

from collections.abc import Iterator


def block_of(path: str) -> tuple[str, int | None, str]:
    """The stack (the path up to its first number), the number in it, and the rest of a path."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return path, None, ""
    return ".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :])


def prefixes(path: str) -> Iterator[str]:
    """The path and everything it lies in, the innermost first; the model itself is ""."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
