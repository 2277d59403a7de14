"""Conversations in one form, whatever their messages' keys are called: who says what, and what of it is learned.

Messages have `role` and `content`, as for chat templates, or `from` and `value`, as on ShareGPT. Per message, `weight`
(0 or 1, as OpenAI's fine-tuning has it), `train`, `training` (axolotl) or `loss` (ms-swift) say whether an assistant's
turn is learned; without any, all of them are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnge_compress.core.errors import DataError, first_line, nearest
from dnge_compress.data.fields import check_text, kind_in_json

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SPEAKERS = {  # on ShareGPT, and what has grown around it
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
LEARNED_KEYS = ("weight", "train", "training", "loss")


@dataclass(frozen=True)
class Conversation:
    """Messages with `role` and `content`, whether each is learned, and the tools that the assistant may call."""

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    tools: tuple[Any, ...] = ()


def conversation(ours: Mapping[str, Any], kind: str, column: str, place: str) -> Conversation | None:
    """The conversation in the fields of a row of type "messages" or "sharegpt", or None if nothing of it is learned.

    `column` is what the file calls that of the messages. Raises DataError.
    """
    where = f"{place}: column '{column}'"
    read = _message if kind == "messages" else _said
    messages = _messages(ours["messages" if kind == "messages" else "conversations"], where, read)
    learned = _learned(messages, where)
    if ours.get("system"):
        if any(m["role"] == "system" for m in messages):
            raise DataError(f"{place} has a system text in its own column and another among its messages; give one")
        messages, learned = [{"role": "system", "content": ours["system"]}, *messages], [False, *learned]
    return _together(messages, learned, ours, place)


def exchange(ours: Mapping[str, Any], columns: tuple[str, str], place: str) -> Conversation | None:
    """The conversation in the fields of a row of type "prompt_completion" that hold messages, as TRL has them, or None
    if nothing of it is learned; of the completion's turns the assistant's are, of the prompt's none.

    `columns` is what the file calls the two. Raises DataError.
    """
    before, behind = (f"{place}: column '{column}'" for column in columns)
    prompt, completion = _messages(ours["prompt"], before, _message), _messages(ours["completion"], behind, _message)
    for i, message in enumerate(prompt, 1):
        key = next((key for key in LEARNED_KEYS if message.get(key)), "")
        if key:
            value = json.dumps(message[key])
            raise DataError(f"{before}, message {i}: '{key}' is {value}, but no prompt is learned; take the key out")
    learned = [False] * len(prompt) + _learned(completion, behind)
    return _together([*prompt, *completion], learned, ours, place)


def _messages(raw: Any, where: str, read: Callable[[Any, str], Message]) -> list[Message]:
    if not isinstance(raw, list):
        raise DataError(f"{where} holds {kind_in_json(raw)}, not a list of messages")
    return [read(message, f"{where}, message {i}") for i, message in enumerate(raw, 1)]


def _learned(messages: Sequence[Message], where: str) -> list[bool]:
    """Whether each is learned, of which one must be the assistant's."""
    if messages and all(m["role"] != "assistant" for m in messages):
        raise DataError(f"{where} holds no assistant turn, so there is nothing to learn; take the row out")
    return [_is_learned(message, f"{where}, message {i}") for i, message in enumerate(messages, 1)]


def _together(
    messages: Sequence[Message], learned: Sequence[bool], ours: Mapping[str, Any], place: str
) -> Conversation | None:
    plain = tuple({key: m[key] for key in m if key not in LEARNED_KEYS} for m in messages)
    tools = _tools(ours["tools"], place) if ours.get("tools") else ()
    return Conversation(plain, tuple(learned), tools) if any(learned) else None


def _message(message: Any, where: str) -> Message:
    _check_object(message, where, ("role", "content"))
    check_text(message["role"], f"{where}: role is", "not text")
    if message["role"] not in ROLES:
        raise DataError(f"{where}: unknown role '{message['role']}'; {nearest(message['role'], ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(content, where) if content else None
        message = {**message, "content": content}
    if content is None and not message.get("tool_calls"):
        raise DataError(f"{where} has no content")
    if content is not None:
        check_text(content, f"{where}: content is", "and only text is learned")
    return _without_nulls(message)


def _joined(parts: list[Any], where: str) -> str:
    """The text of a content in parts, `{"type": "text", "text": …}` each, as chat interfaces write it."""
    for i, part in enumerate(parts, 1):
        which = f"{where}: part {i} of its content is"
        if not isinstance(part, Mapping):
            raise DataError(f"{which} {kind_in_json(part)}, not an object with type and text")
        if part.get("type") not in (None, "text"):  # columnar files fill up what isn't there with nulls
            raise DataError(f"{which} of type '{part['type']}', and only text is learned; take the row out")
        check_text(part.get("text"), which, "and only text is learned")
    return "".join(part["text"] for part in parts)


def _said(message: Any, where: str) -> Message:
    """A message of ShareGPT's."""
    _check_object(message, where, ("from", "value"))
    speaker = message["from"]
    check_text(speaker, f"{where}: from is", "not text")
    if speaker not in SPEAKERS:
        raise DataError(f"{where}: nobody is called '{speaker}'; {nearest(speaker, SPEAKERS)}")
    value = message.get("value")
    if value is None:
        raise DataError(f"{where} has no value")
    check_text(value, f"{where}: value is", "and only text is learned")
    rest = {key: message[key] for key in LEARNED_KEYS if message.get(key) is not None}
    if speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(value, where)], **rest}
    return {"role": SPEAKERS[speaker], "content": value, **rest}


def _check_object(message: Any, where: str, keys: tuple[str, str]) -> None:
    needed = " and ".join(keys)
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {kind_in_json(message)}, not an object with {needed}")
    if keys[0] not in message:
        other = {"role": "sharegpt", "from": "messages"}[keys[0]]
        hint = f"; type '{other}' has those" if {"from", "role"} & set(message) else ""
        has = ", ".join(message) or "nothing"
        raise DataError(f"{where} has no '{keys[0]}' (it has: {has}); it needs {needed}{hint}")


def _call(value: str, where: str) -> dict[str, Any]:
    try:
        function = json.loads(value)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: a function_call's value should be JSON, and isn't ({first_line(e)})") from None
    if not isinstance(function, dict) or "name" not in function:
        raise DataError(f"{where}: a function_call's value should be an object with name and arguments")
    return {"type": "function", "function": function}


def _is_learned(message: Message, where: str) -> bool:
    given = {key: message[key] for key in LEARNED_KEYS if message.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1):  # which true and false are as well
            raise DataError(f"{where}: '{key}' is {value!r:.40}; only 0, 1, true and false say what is learned")
    if len({bool(value) for value in given.values()}) > 1:
        told = " and ".join(f"'{key}' is {json.dumps(value)}" for key, value in given.items())
        raise DataError(f"{where}: {told}; give one of them")
    key, value = next(iter(given.items()), ("", True))
    if message["role"] == "assistant":
        return bool(value)
    if key and value:
        raise DataError(
            f"{where}: '{key}' is {json.dumps(value)}, but only assistant turns are learned, and this is of role "
            f"'{message['role']}'; take the key out"
        )
    return False


def _tools(value: Any, place: str) -> tuple[Any, ...]:
    """A list of tools, as it is or in JSON: columnar files hold text, as they would fill up objects with nulls."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise DataError(
                f"{place}: column 'tools' should hold a list or JSON, and doesn't ({first_line(e)})"
            ) from None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"{place}: column 'tools' holds {kind_in_json(value)}, not a list of objects")
    return tuple(_without_nulls(value))


def _without_nulls(value: Any) -> Any:
    """Columnar files give every message the keys of all others, as nulls; a template would take them for real."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
