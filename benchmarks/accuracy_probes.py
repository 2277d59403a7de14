"""What networks answer to pictures of nothing: no data, but the function is asked and not the weights alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dnge_compress.graph.types import ModelGraph
from dnge_compress.signals.synthetic_images import dead_leaves, random_images

COUNT = 128  # images
PROBED = 6  # features of a unit
FLOOR = 1e-6


def pictures(channels: int, side: int, *, is_photograph: bool = False) -> Tensor:
    """The images `[128, C, S, S]` that all networks with these inputs are shown; grey ones are drawings mostly."""
    paint = dead_leaves if is_photograph else random_images
    return paint((COUNT, channels, side, side), torch.Generator().manual_seed(0))


@torch.inference_mode()
def asked(model: nn.Module, graph: ModelGraph, shown: Tensor, classes: str) -> tuple[dict[str, Tensor], Tensor]:
    """Features `[U, 6]` of the units of every space, and a row about the answers.

    Of what is written into a unit before its activation: mean, log deviation and share above zero; of the classes also
    their mean probability, its deviation, and their part of the entropy.
    """
    said: dict[str, Tensor] = {}
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    hooks = [m.register_forward_hook(_listener(said, f"{name}.weight")) for name, m in modules.items()]
    try:
        logits = model(shown)
        logits = getattr(logits, "logits", logits)
    finally:
        for hook in hooks:
            hook.remove()
    found = {s.name: _units(graph, s.name, said) for s in graph.spaces if s.kind != "layer"}
    share = logits.softmax(1)
    about = [share.mean(0), share.std(0), -(share * share.clamp_min(FLOOR).log()).mean(0)]
    found[classes] = torch.cat([found[classes][:, :3], torch.stack(about, 1)], 1)
    return found, _row(logits)


def _listener(said: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def listen(module: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        rows = answer.movedim(1 if isinstance(module, nn.Conv2d) else -1, 0).flatten(1)
        said[name] = torch.stack([rows.mean(1), rows.std(1).clamp_min(FLOOR).log(), (rows > 0).float().mean(1)], 1)

    return listen


def _units(graph: ModelGraph, space: str, said: dict[str, Tensor]) -> Tensor:
    units, parts = graph.space(space).units, []
    for slot in graph.slots_of(space):
        if slot.param in said and not graph.consumes(slot):
            rows = said[slot.param].narrow(0, slot.offset, units * slot.width)
            parts.append(rows.unflatten(0, (units, slot.width)).mean(1))
    own = torch.stack(parts).mean(0) if parts else torch.zeros(units, 3)
    return nn.functional.pad(own, (0, PROBED - 3))


def _row(logits: Tensor) -> Tensor:
    """How sure, how even and how various the answers `[N, K]` are: 9 numbers, then log singular values and mean logits
    in order, `[9 + 2 K]`."""
    share = logits.softmax(1)
    entropy = -(share * share.clamp_min(FLOOR).log()).sum(1)
    whole = share.mean(0)
    evenness = -(whole * whole.clamp_min(FLOOR).log()).sum()
    first, second = share.topk(2, 1).values.T
    centred = logits - logits.mean(1, keepdim=True)
    size, spread = centred.square().mean(), logits.var(0).mean()
    numbers = [entropy.mean(), entropy.std(), evenness, evenness - entropy.mean(), first.mean(), first.std(),
               (first - second).mean(), size.clamp_min(FLOOR).log(), spread.clamp_min(FLOOR).log()]  # fmt: skip
    sizes = torch.linalg.svdvals(logits - logits.mean(0)) / len(logits) ** 0.5
    return torch.cat([torch.stack(numbers), sizes.clamp_min(FLOOR).log(), centred.mean(0).sort().values])
