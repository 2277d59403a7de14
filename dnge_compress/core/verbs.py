"""What surrounds the work of every public verb: a plain torch, and progress that is drawn where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from dnge_compress.core.progress_bars import bars
from dnge_compress.core.torch_state import plain_torch

P = ParamSpec("P")
R = TypeVar("R")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """The function as a public verb: whatever the caller has switched in torch, it works as in a fresh process and
    gives everything back; with `progress=True` it draws bars on stderr."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = kwargs
        if "data" in given:
            given["data"] = _drawn(given["data"])
        with plain_torch(), ExitStack() as stack:
            if given.get("progress") is True:
                given["progress"] = stack.enter_context(bars())
            return function(*args, **kwargs)

    return run


def _drawn(data: Any) -> Any:
    """Data that are made on demand (a generator, a DataLoader), made now, in the torch that they were written for; a
    data set whose rows can be asked for one by one is left as it is."""
    is_made = not isinstance(data, Iterable) or isinstance(data, Sequence | Mapping | Tensor) or _has_rows(data)
    return data if is_made else list(data)


def _has_rows(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")
