"""How the texts begin that a causal language model was trained on, as token ids.

A declared start token is believed, and beside it the chat template's opening of a user's turn, so that a chat model
asks its questions itself. A checkpoint whose config names no token of its vocabulary may still begin every text with
control tokens: of those that the tokenizer knows, the half is taken after which the model is surer of what it writes.
Without any, texts begin with a token from the middle of what it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from dnge_compress.core.errors import DataError
from dnge_compress.signals.inference import device_of
from dnge_compress.signals.sampled_text import continued, text_length
from dnge_compress.signals.tokenizer import rendered, tokenizer_of

Beginning = tuple[int, ...]

TRIED = 64  # control tokens at most
TEXTS, TOKENS = 8, 48  # that are written after each; fewer tokens where the model has no positions for more
REPETITIVE = 0.1  # of the median entropy: with less, a text is a loop
UNWRITTEN = ("pad_token_id", "unk_token_id", "mask_token_id")  # what no text begins with
PLACEHOLDER, SOME_DAY = "placeholder", "26 Jul 2024"  # for templates that put in the date


def beginnings(model: Any, generator: torch.Generator, prompts: Sequence[str] = ()) -> list[Beginning]:
    """What texts begin with, each as often as the others. The model should be in inference mode.

    Raises DataError for prompts where the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model.name_or_path or "")
    if prompts:
        if tokenizer is None:
            raise DataError("calibration.prompts are texts, and the model has no tokenizer; leave them out")
        return [_prompt(tokenizer, prompt, model) for prompt in prompts]
    size = model.config.get_text_config().vocab_size
    declared = declared_start(model)
    if declared is not None:
        chat = _users_turn(tokenizer, size)
        return [(declared,), chat] if chat else [(declared,)]
    controls = _control_tokens(tokenizer, size)
    if controls:
        return _surest(model, controls, generator)
    return _from_the_middle(model, generator)


def in_turn(starts: Sequence[Beginning], rows: int) -> list[Beginning]:
    """So many beginnings, each as often as the others."""
    return list(islice(cycle(starts), rows))


def _prompt(tokenizer: Any, prompt: str, model: Any) -> Beginning:
    """A prompt's tokens, without those that end a text. The tokenizer's start comes first, but not before itself, and
    not before another special token of a model that declares no such start. Raises DataError."""
    own, ids = list(tokenizer(prompt, add_special_tokens=False).input_ids), list(tokenizer(prompt).input_ids)
    unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id}  # what stands for a word begins no text
    is_begun = bool(own) and own[0] in {*tokenizer.all_special_ids} - unknown
    if is_begun and (ids[0] == own[0] or ids[0] != declared_start(model)):
        ids = own
    while ids and ids[-1] in ends(model):
        ids.pop()
    if not ids or max(ids) >= model.config.get_text_config().vocab_size:
        raise DataError(f"calibration.prompts: {prompt!r} has no tokens that the model knows; write another text")
    return tuple(ids)


def ends(model: Any) -> tuple[int, ...]:
    """The tokens that end a text: the config's, or where that names none of the vocabulary, the tokenizer's."""
    size = model.config.get_text_config().vocab_size
    declared = getattr(model.config.get_text_config(), "eos_token_id", None)
    found = declared if isinstance(declared, list) else [declared]
    if not any(isinstance(t, int) and 0 <= t < size for t in found):
        tokenizer = tokenizer_of(model.name_or_path or "")
        found = [tokenizer.eos_token_id, tokenizer.sep_token_id] if tokenizer is not None else []
    return tuple(t for t in found if isinstance(t, int) and 0 <= t < size)


def declared_start(model: Any) -> int | None:
    """The start token that the config names, or the end token where there is none (GPT-2 has one for both)."""
    config = model.config.get_text_config()
    for token in (getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)):
        first = token[0] if isinstance(token, list) and token else token
        if isinstance(first, int) and 0 <= first < config.vocab_size:
            return first
    return None


def _users_turn(tokenizer: Any, size: int) -> Beginning | None:
    """What a chat template puts before a user's words."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return None
    asked = [{"role": "user", "content": PLACEHOLDER}]
    try:
        text = rendered(tokenizer, asked, tokenize=False, date_string=SOME_DAY)
    except DataError:
        raise
    except Exception:  # templates raise what they like, where they want a system's words first, say
        return None
    before, found, _ = text.partition(PLACEHOLDER)
    ids = tuple(tokenizer(before, add_special_tokens=False).input_ids) if found else ()
    return ids if ids and max(ids) < size else None


def _control_tokens(tokenizer: Any, size: int) -> list[int]:
    """Special tokens, and entries that look like them."""
    if tokenizer is None:
        return []
    unwritten = {getattr(tokenizer, name, None) for name in UNWRITTEN}
    named = {i for t, i in tokenizer.get_vocab().items() if len(t) > 2 and (t[0] + t[-1]) in ("[]", "<>")}
    return sorted(i for i in {*named, *tokenizer.all_special_ids} - unwritten if i < size)[:TRIED]


def _surest(model: Any, controls: Sequence[int], generator: torch.Generator) -> list[Beginning]:
    """The half of the tokens after which the model's own texts have the least entropy, but for those that only make it
    repeat itself."""
    _, nats = continued(model, _column(model, controls, TEXTS), text_length(model, TOKENS), generator)
    entropies = nats.view(len(controls), -1).mean(1)
    middle = float(entropies.median())
    return [(t,) for t, e in zip(controls, entropies.tolist(), strict=True) if REPETITIVE * middle <= e <= middle]


def _from_the_middle(model: Any, generator: torch.Generator) -> list[Beginning]:
    ids, _ = continued(model, _column(model, [0], TEXTS), text_length(model, TOKENS), generator)
    return [(token,) for token in ids[:, ids.shape[1] // 2 :].flatten().tolist()]


def _column(model: Any, tokens: Sequence[int], times: int) -> Tensor:
    return torch.tensor(tokens, device=device_of(model)).repeat_interleave(times)[:, None]
