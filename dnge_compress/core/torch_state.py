"""What a program has switched in torch for itself: modes, defaults, flags. Our own work isn't done under them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

CASTING = ("cpu", "cuda", "xpu", "mps")  # devices that may be under autocast
HOME = torch.device("cpu")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as it starts, for a block: gradients can be taken, no inference mode, no autocast, new numbers are float32
    on the CPU. Deterministic algorithms stay on, but where torch has none it warns instead of failing.

    All of it is as before when the block ends.
    """
    dtype, is_strict = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in CASTING:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != HOME:
            stack.enter_context(HOME)
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        if is_strict:
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=only_warns)
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
