"""What a causal language model writes behind some tokens, or behind a prompt, as an answer if it is made for that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dnge_compress.checkpoint import check_weights
from dnge_compress.checkpoint.model_files import refuse_silent
from dnge_compress.core.errors import DataError
from dnge_compress.core.wording import several
from dnge_compress.data.chat import prompt_of
from dnge_compress.data.pieces import begun, encode, opening_of
from dnge_compress.graph.vocabulary import refuse_unknown, rows_of
from dnge_compress.signals.inference import device_of, inference_mode_of
from dnge_compress.signals.positions import positions_of
from dnge_compress.signals.tokenizer import needed_tokenizer

LEAST_TEMPERATURE = 1e-6  # above 0: scores over less may be infinite
# What a model's own settings may ask for and we don't: one text, token by token, and nothing beside it.
ALONE = {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False}


@dataclass(frozen=True, kw_only=True)
class Written:
    """A continuation: `prompt` is what the model read, as its chat template writes it where `is_chat`. `has_ended`
    tells whether the model came to an end of its own, within `room` tokens."""

    prompt: str
    text: str
    is_chat: bool
    prompt_tokens: int
    tokens: int
    room: int
    has_ended: bool

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def written(
    model: Any, prompt: str, *, is_chat: bool | None = None, tokens: int, temperature: float = 0.0, seed: int = 0
) -> Written:
    """What a model goes on with behind a prompt, for so many tokens at most, or as many as it has positions for.

    `is_chat` makes the prompt a user's turn of a conversation; None does where the tokenizer has a chat template. At
    temperature 0 the likeliest token is taken each time, else they are drawn by `seed`, under the model's own
    generation settings (top_k, top_p, …). Raises WeightError for damaged weights, UnsupportedModelError for a model
    that writes no text, and DataError for one without a tokenizer, or without the template that is asked for, for a
    prompt that leaves no room, and for a temperature that no score can be divided by.
    """
    if 0 < temperature < LEAST_TEMPERATURE:
        raise DataError(
            f"temperature {temperature:g} is too small to divide by; give {LEAST_TEMPERATURE:g} at least, or 0 for the "
            "likeliest token each time"
        )
    check_weights(model)
    path = str(getattr(model, "name_or_path", "") or "")
    refuse_silent(type(model).__name__, path or "the model")
    tokenizer = needed_tokenizer(path, "to write with")
    if is_chat and not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template, so the prompt can't be a user's turn; go on from the bare text "
            "(--no-chat), or put a chat_template.jinja into the model's folder"
        )
    speaks = bool(tokenizer.chat_template) if is_chat is None else is_chat
    whole = prompt_of(prompt, tokenizer) if speaks else prompt
    ids = encode([whole], tokenizer)[0]
    ids = ids if speaks else begun(ids, opening_of(tokenizer))
    room = _room(model, tokenizer, ids, tokens)
    found = continuation(model, ids, tokenizer, room, temperature=temperature, seed=seed)
    ends = _ends(model, tokenizer)
    return Written(
        prompt=whole,
        text=_behind(ids, found, tokenizer),
        is_chat=speaks,
        prompt_tokens=len(ids),
        tokens=len(found),
        room=room,
        has_ended=bool(found) and found[-1] in ends,
    )


def continuation(
    model: Any, beginning: list[int], tokenizer: Any, tokens: int, *, temperature: float = 0.0, seed: int = 0
) -> list[int]:
    """The tokens that the model goes on with, up to one that ends a text or so many; the likeliest each time, or drawn
    at a temperature."""
    ids = torch.tensor([beginning], device=device_of(model))
    drawing = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    ends = _ends(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.inference_mode(), inference_mode_of(model):
        torch.manual_seed(seed)
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            pad_token_id=padding,
            eos_token_id=ends or None,
            **drawing,
            **ALONE,
        )
    return [int(i) for i in found[0, len(beginning) :]]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the model's own, else the tokenizer's."""
    settings = getattr(model, "generation_config", None)
    own = getattr(settings, "eos_token_id", None)
    own = tokenizer.eos_token_id if own is None else own
    return [] if own is None else [own] if isinstance(own, int) else list(own)


def _room(model: nn.Module, tokenizer: Any, ids: list[int], tokens: int) -> int:
    """How many of the tokens asked for the model has positions for. Raises DataError where there is nothing to go on
    from, or no room behind it."""
    if not ids:
        raise DataError("the prompt is empty, and the tokenizer begins texts with no token of its own; give some words")
    refuse_unknown("the prompt holds", max(ids), rows=rows_of(model), tokenizer=tokenizer)
    positions = positions_of(model)
    if positions is None:
        return tokens
    if len(ids) >= positions:
        raise DataError(
            f"the prompt has {several(len(ids), 'token')}, and the model has positions for {positions:,}; shorten it"
        )
    return min(tokens, positions - len(ids))


def _behind(beginning: list[int], found: list[int], tokenizer: Any) -> str:
    """The text of the tokens found: what the whole becomes longer by, since tokens alone may lose their spaces."""
    before, both = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (beginning, [*beginning, *found]))
    return both[len(before) :] if both.startswith(before) else str(tokenizer.decode(found, skip_special_tokens=True))
