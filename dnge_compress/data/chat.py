"""Conversations in the format of the model's chat template, of which only the assistant's turns are learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from jinja2 import TemplateError

from dnge_compress.core.errors import DataError
from dnge_compress.data.conversations import Conversation, Message
from dnge_compress.data.pieces import Row, encode_pieces
from dnge_compress.signals.tokenizer import rendered as tokenizer_rendered

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TOOLS = re.compile(r"\btools\b")


def check_template(tokenizer: Any) -> None:
    """Raises DataError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template, which conversations need; put a chat_template.jinja into the "
            "model's folder, or use type 'prompt_completion' with bare texts"
        )


def encode_chat(talk: Conversation, tokenizer: Any, place: str) -> list[Row]:
    """The rows that a conversation is learned from; as a rule one. Raises DataError naming `place`.

    A template that marks what the assistant says with {% generation %} is taken at its word. From others it is found by
    rendering the conversation turn by turn: what a turn adds to the prompt for it is learned, its end mark included.
    Some templates render a turn differently once others follow (Qwen3 drops its thoughts); then no single row shows
    each turn as the model will have to write it, and there is a row for each.

    The template writes the special tokens, a start-of-text token among them; the tokenizer adds none.
    """
    if GENERATION.search(_template(talk, tokenizer, place)):
        return [_marked(talk, tokenizer, place)]
    whole = rendered(talk, tokenizer, place)
    turns = [_turn(talk, i, tokenizer, place) for i, is_learned in enumerate(talk.learned) if is_learned]
    if all(whole.startswith(prompt + answer) for prompt, answer in turns):
        return [encode_pieces(_pieces(whole, turns), tokenizer)]
    return [encode_pieces([(prompt, False), (answer, True)], tokenizer) for prompt, answer in turns]


def rendered(talk: Conversation, tokenizer: Any, place: str) -> str:
    """A whole conversation as the chat template writes it. Raises DataError naming `place`."""
    _template(talk, tokenizer, place)
    return str(_applied(talk, talk.messages, tokenizer, place, tokenize=False))


def prompt_of(text: str, tokenizer: Any, place: str = "the prompt") -> str:
    """What a model reads before it answers a user's text: that turn, and the beginning of its own. Raises DataError
    naming `place`."""
    talk = Conversation(({"role": "user", "content": text},), (False,))
    return str(_applied(talk, talk.messages, tokenizer, place, tokenize=False, add_generation_prompt=True))


def renderings(talk: Conversation, tokenizer: Any, place: str) -> list[str]:
    """A whole conversation, and its beginnings that end in a learned turn, where the template writes them otherwise, as
    they have rows of their own then. Raises DataError naming `place`."""
    whole = rendered(talk, tokenizer, place)
    if GENERATION.search(_template(talk, tokenizer, place)):
        return [whole]
    ends = [i for i, is_learned in enumerate(talk.learned, 1) if is_learned]
    parts = [str(_applied(talk, talk.messages[:end], tokenizer, place, tokenize=False)) for end in ends]
    return [whole, *(part for part in parts if not whole.startswith(part))]


def _template(talk: Conversation, tokenizer: Any, place: str) -> str:
    """The template for a conversation, which must have a place for its tools."""
    check_template(tokenizer)
    template: str = tokenizer.get_chat_template(tools=list(talk.tools) or None)
    if talk.tools and not TOOLS.search(template):
        raise DataError(
            f"{place}: the row gives tools, and the chat template has no place for them; use a model whose template "
            'does, or leave them out with columns: {tools: ""}'
        )
    return template


def _turn(talk: Conversation, index: int, tokenizer: Any, place: str) -> tuple[str, str]:
    """The text before an assistant's turn, and that of the turn."""
    if index == 0:
        raise DataError(
            f"{place}: the conversation begins with the assistant, and nothing leads to that turn; take it out, or "
            "mark it (train: false)"
        )
    before, both = talk.messages[:index], talk.messages[: index + 1]
    prompt = _applied(talk, before, tokenizer, place, tokenize=False, add_generation_prompt=True)
    text = _applied(talk, both, tokenizer, place, tokenize=False)
    if not text.startswith(prompt) or text == prompt:
        raise DataError(
            f"{place}, message {index + 1}: the chat template doesn't continue its prompt with this turn; "
            "use a template that marks it with {% generation %}"
        )
    return prompt, text[len(prompt) :]


def _pieces(whole: str, turns: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    pieces, done = [], 0
    for prompt, answer in turns:
        pieces += [(whole[done : len(prompt)], False), (answer, True)]
        done = len(prompt) + len(answer)
    return [*pieces, (whole[done:], False)]


def _marked(talk: Conversation, tokenizer: Any, place: str) -> Row:
    if not tokenizer.is_fast:
        raise DataError(
            "a chat template with {% generation %} needs a fast tokenizer; this one can't tell its tokens apart"
        )
    options = {"return_dict": True, "return_assistant_tokens_mask": True, "tokenizer_kwargs": {"verbose": False}}
    encoded = _applied(talk, talk.messages, tokenizer, place, **options)
    learned = _of_learned_turns([bool(m) for m in encoded["assistant_masks"]], talk, place)
    if not any(learned):
        raise DataError(
            f"{place}: the chat template marks nothing of this row with {{% generation %}}; take the row out"
        )
    return Row(list(encoded["input_ids"]), learned)


def _of_learned_turns(marks: list[bool], talk: Conversation, place: str) -> list[bool]:
    """The marks of those assistant turns alone that are learned; the n-th run of marks is the n-th turn's."""
    turns = [is_learned for is_learned, m in zip(talk.learned, talk.messages, strict=True) if m["role"] == "assistant"]
    if all(turns):
        return marks
    runs = [(is_marked, len(list(run))) for is_marked, run in groupby(marks)]
    parts = sum(is_marked for is_marked, _ in runs)
    if parts != len(turns):
        raise DataError(
            f"{place}: some turns aren't to be learned, and the chat template marks {parts} parts of {len(turns)} "
            "assistant turns, so it can't be told which belong to them; use a template with one {% generation %} for "
            "each turn"
        )
    asked = iter(turns)
    return [mark for is_marked, length in runs for mark in [is_marked and next(asked)] * length]


def _applied(talk: Conversation, messages: Sequence[Message], tokenizer: Any, place: str, **options: Any) -> Any:
    tools = {"tools": list(talk.tools)} if talk.tools else {}
    try:
        return tokenizer_rendered(tokenizer, messages, **tools, **options)
    except DataError as e:
        raise DataError(f"{place}: {e}") from None
    except (TemplateError, ValueError, TypeError, KeyError, IndexError) as e:
        raise DataError(f"{place}: the chat template refuses this row: {e}") from e
