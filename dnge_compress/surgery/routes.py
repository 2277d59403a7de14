"""Which experts a model's routers choose, so that another one that differs by rounding chooses the same.

Two experts that a router likes nearly alike change places when sums are taken in another order, and half precision
has many such pairs. Whoever compares a model with its masked original compares those choices away.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TOP = {torch.topk, Tensor.topk}


class ChosenRoutes(TorchFunctionMode):
    """While entered, keeps what every choice of the best few was made of, and what was chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if _is_choice(func, *args, **(kwargs or {})):
            self.choices.append((args[0], out[1]))
        return out


class FollowedRoutes(TorchFunctionMode):
    """While entered, every choice of the best few falls as the one of the same number did, where the same experts can
    be chosen; the scores of the chosen are the model's own."""

    def __init__(self, chosen: ChosenRoutes) -> None:
        super().__init__()
        self.left = deque(chosen.choices)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.left or not _is_choice(func, *args, **(kwargs or {})):
            return out
        index = _renumbered(*self.left.popleft(), args[0])
        if index is None or index.shape != out[1].shape or index.device != args[0].device:
            return out
        return torch.return_types.topk((args[0].gather(-1, index), index))


def _is_choice(func: Any, scores: Any = None, k: Any = None, dim: int = -1, *_: Any, **__: Any) -> bool:
    """Whether a call takes the best few on the last axis."""
    return func in TOP and isinstance(scores, Tensor) and dim in (-1, scores.dim() - 1)


def _renumbered(scores: Tensor, index: Tensor, theirs: Tensor) -> Tensor | None:
    """What was chosen, `index` `[..., k]`, by `scores` `[..., E]`, in the numbers of a model that scores the experts
    alone which aren't masked there, `theirs` `[..., F]`; None where its experts are others."""
    if scores.shape[:-1] != theirs.shape[:-1]:
        return None
    if scores.shape == theirs.shape:
        return index
    stays = (scores > scores.amin(-1, keepdim=True)).flatten(0, -2).any(0)
    if int(stays.sum()) != theirs.shape[-1]:
        return None
    return (stays.cumsum(0) - 1)[index]
