"""Text that a causal language model writes itself."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dnge_compress.core.processes import own_share, rank, summed, world
from dnge_compress.signals.draws import drawn, pass_over
from dnge_compress.signals.inference import device_of
from dnge_compress.signals.positions import positions_of

# Rows written side by side: every step reads all weights, so many rows cost little more than one, as long as what they
# remember is small beside the weights. Decided by the model alone, so that the rows don't depend on the machine.
CACHE_NUMBERS = 1 << 27  # remembered by all rows; of a large model
CACHE_SHARE = 1 / 8  # of its own numbers, if that is more
ROWS_AT_ONCE = (8, 256)  # at least and at most
READ_TOKENS = 4096  # at once, by a model without memory, which reads all again for each token


def text_length(model: Any, length: int) -> int:
    """`length`, or the most tokens that the model has positions for."""
    most = positions_of(model)
    return length if most is None else min(length, most)


def sample_batches(
    model: Any,
    starts: Sequence[Sequence[int]],
    length: int,
    generator: torch.Generator,
    report: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Batches of token ids `[rows, length]` sampled from the model itself at temperature 1, one row after each of
    `starts`; starts of equal length share batches. Of several processes each writes some batches, and all get all of
    them. `report` hears of the tokens that this process wrote and has to write. The model should be in inference mode.
    """
    at_once, parts = rows_at_once(model, length), list[Tensor]()
    for size in sorted({len(start) for start in starts}):
        given = torch.tensor([start for start in starts if len(start) == size])
        parts += given.chunk(math.ceil(len(given) / at_once))
    total, done = sum(len(part) * (length - part.shape[1]) for _, part in own_share(parts)), 0

    def wrote(tokens: int) -> None:
        nonlocal done
        done += tokens
        if report is not None:
            report(done, total)

    for first in range(0, len(parts), world()):
        turn = [part.to(device_of(model)) for part in parts[first : first + world()]]
        written = [torch.zeros(len(part), length, dtype=torch.long, device=part.device) for part in turn]
        for number, part in enumerate(turn):
            if number == rank():
                written[number] = continued(model, part, length, generator, wrote)[0]
            else:  # drawn numbers are the same, whoever writes
                pass_over(len(part), length - part.shape[1], generator)
        yield from map(summed, written)


def rows_at_once(model: Any, length: int) -> int:
    """As many rows as have room, by the keys and values that every layer remembers; without attention heads, a layer
    counts as wide as the residual stream."""
    config = model.config.get_text_config()
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)  # GPT-2 answers to these names too
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (width // heads if heads else width)
    remembered = size * (getattr(config, "num_key_value_heads", None) or heads or 1)
    least, most = ROWS_AT_ONCE
    numbers = max(CACHE_NUMBERS, CACHE_SHARE * sum(p.numel() for p in model.parameters()))
    return max(least, min(most, int(numbers) // (2 * remembered * layers * length)))


def continued(
    model: Any, ids: Tensor, length: int, generator: torch.Generator, wrote: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids `[N, length]` that go on after `ids`, and what each sampled one cost in nats `[N, sampled]`; `wrote`
    hears of each step's tokens."""
    name = cache_name(model)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    ids, cache, remembers = ids[:, :length], None, True
    token, costs = ids, [torch.zeros(len(ids), 0)]
    with torch.no_grad():
        while ids.shape[1] < length:
            if remembers:
                out = model(input_ids=token, use_cache=True, **{name: cache}, **last)
                cache, logits = getattr(out, name, None), out.logits[:, -1]
                remembers = cache is not None
            else:
                parts = ids.split(max(1, READ_TOKENS // ids.shape[1]))
                logits = torch.cat([model(input_ids=part, **last).logits[:, -1] for part in parts])
            token, nats = drawn(logits, generator)
            costs.append(nats.cpu())
            ids = torch.cat([ids, token], 1)
            if wrote is not None:
                wrote(len(ids))
    return ids, torch.cat(costs, 1)


def cache_name(model: Any) -> str:
    """What the model calls its memory of the tokens before, as argument and output; another word since 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
