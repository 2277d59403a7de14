"""Conversations in the format of the model's chat template, of which only the assistant's turns are learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from dnge_compress.core.errors import DataError
from dnge_compress.data.pieces import Row, encode_pieces
from dnge_compress.signals.tokenizer import rendered as tokenizer_rendered

Message = dict[str, Any]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def check_template(tokenizer: Any) -> None:
    """Raises DataError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template, which type 'messages' needs; put a chat_template.jinja into the "
            "model's folder, or use type 'prompt_completion'"
        )


def encode_chat(messages: Sequence[Message], tokenizer: Any, place: str) -> list[Row]:
    """The rows that a conversation is learned from; as a rule one. Raises DataError naming `place`.

    A template that marks what the assistant says with {% generation %} is taken at its word. From others it is found by
    rendering the conversation turn by turn: what a turn adds to the prompt for it is learned, its end mark included.
    Some templates render a turn differently once others follow (Qwen3 drops its thoughts); then no single row shows
    each turn as the model will have to write it, and there is a row for each.
    """
    template = tokenizer.get_chat_template()
    if GENERATION.search(template):
        return [_marked(messages, tokenizer, place)]
    whole = rendered(messages, tokenizer, place)
    turns = [_turn(messages, i, tokenizer, place) for i, m in enumerate(messages) if m["role"] == "assistant"]
    if all(whole.startswith(prompt + answer) for prompt, answer in turns):
        return [encode_pieces(_pieces(whole, turns), tokenizer)]
    return [encode_pieces([(prompt, False), (answer, True)], tokenizer) for prompt, answer in turns]


def _turn(messages: Sequence[Message], index: int, tokenizer: Any, place: str) -> tuple[str, str]:
    """The text before an assistant's turn, and that of the turn."""
    prompt = rendered(messages[:index], tokenizer, place, add_generation_prompt=True)
    both = rendered(messages[: index + 1], tokenizer, place)
    if not both.startswith(prompt) or both == prompt:
        raise DataError(
            f"{place}, message {index + 1}: the chat template doesn't continue its prompt with this turn; "
            "use a template that marks it with {% generation %}"
        )
    return prompt, both[len(prompt) :]


def _pieces(whole: str, turns: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    pieces, done = [], 0
    for prompt, answer in turns:
        pieces += [(whole[done : len(prompt)], False), (answer, True)]
        done = len(prompt) + len(answer)
    return [*pieces, (whole[done:], False)]


def _marked(messages: Sequence[Message], tokenizer: Any, place: str) -> Row:
    if not tokenizer.is_fast:
        raise DataError(
            "a chat template with {% generation %} needs a fast tokenizer; this one can't tell its tokens apart"
        )
    options = {"return_dict": True, "return_assistant_tokens_mask": True, "tokenizer_kwargs": {"verbose": False}}
    encoded = _applied(messages, tokenizer, place, **options)
    learned = [bool(m) for m in encoded["assistant_masks"]]
    if not any(learned):
        raise DataError(
            f"{place}: the chat template marks nothing of this row with {{% generation %}}; take the row out"
        )
    return Row(list(encoded["input_ids"]), learned)


def rendered(messages: Sequence[Message], tokenizer: Any, place: str, **options: bool) -> str:
    """A conversation as the chat template writes it. Raises DataError naming `place`."""
    return _applied(messages, tokenizer, place, tokenize=False, **options)


def _applied(messages: Sequence[Message], tokenizer: Any, place: str, **options: Any) -> Any:
    try:
        return tokenizer_rendered(tokenizer, messages, **options)
    except DataError as e:
        raise DataError(f"{place}: {e}") from None
    except (TemplateError, ValueError, TypeError, KeyError, IndexError) as e:
        raise DataError(f"{place}: the chat template refuses this row: {e}") from e
