"""Which modules the example inputs never reach: what is cut isn't followed into them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from dnge_compress.graph.tracing.running import call_with, tensors_in


def unreached_modules(net: nn.Module, inputs: Any) -> list[str]:
    """The paths of modules with weights that are neither called nor part of what the outputs are computed from, the
    outermost only."""
    called: set[nn.Module] = set()
    with ExitStack() as hooks:
        for module in net.modules():
            hooks.enter_context(module.register_forward_hook(lambda m, args, out: called.add(m)))
        outputs = [t for t in tensors_in(call_with(net, inputs)) if t.grad_fn is not None]
    used = _weights_behind([t.grad_fn for t in outputs])
    found: list[str] = []
    for path, module in net.named_modules():
        own = {id(p) for p in module.parameters()}
        is_idle = own and not own & used and not any(m in called for m in module.modules())
        if is_idle and path and not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found


def _weights_behind(nodes: list[Any]) -> set[int]:
    """The ids of the parameters from which autograd's nodes are computed."""
    seen: set[Any] = set()
    used: set[int] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            used.add(id(node.variable))
        nodes += [parent for parent, _ in node.next_functions]
    return used
