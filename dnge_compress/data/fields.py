"""What a row must hold for its type; errors name the row and the column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dnge_compress.core.errors import DataError, nearest
from dnge_compress.recipes.job_schema import COLUMNS, Dataset

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def check_columns(names: Iterable[str], source: Dataset, place: str) -> None:
    """Raises DataError if a column that the type needs isn't among `names`."""
    names = list(names)
    for ours in COLUMNS[source.type]:
        theirs = source.column(ours)
        if theirs not in names:
            there = f"{nearest(theirs, names)} (there are: {', '.join(sorted(names))})" if names else "there is none"
            rename = f"say which one is meant with columns: {{{ours}: …}}"
            raise DataError(f"{place}: no column '{theirs}' for type '{source.type}'; {there}; {rename}")


def fields(row: Mapping[str, Any], source: Dataset, place: str) -> dict[str, Any] | None:
    """The columns of a row under our names, or None if there is nothing to learn in it. Raises DataError.

    A value that is null or blank is nothing to learn; a prompt may be blank.
    """
    check_columns(row, source, place)
    ours = {name: row[source.column(name)] for name in COLUMNS[source.type]}
    if any(value is None for value in ours.values()):
        return None
    for name, value in ours.items():
        where = f"{place}: column '{source.column(name)}'"
        if name == "messages":
            ours[name] = _messages(value, where)
        else:
            _check_text(value, f"{where} holds", "not text")
    learned = ours[COLUMNS[source.type][-1]]
    return ours if (learned.strip() if isinstance(learned, str) else learned) else None


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise DataError(f"{where} holds {_kind(value)}, not a list of messages")
    messages = [_message(message, f"{where}, message {i}") for i, message in enumerate(value, 1)]
    if messages and all(m["role"] != "assistant" for m in messages):
        raise DataError(f"{where} holds no assistant turn, so there is nothing to learn; take the row out")
    return messages


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {_kind(message)}, not an object with role and content")
    if "role" not in message:
        raise DataError(f"{where} has no 'role' (it has: {', '.join(message) or 'nothing'}); it needs role and content")
    if message["role"] not in ROLES:
        raise DataError(f"{where}: unknown role '{message['role']}'; {nearest(str(message['role']), ROLES)}")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise DataError(f"{where} has no content")
    if content is not None:
        _check_text(content, f"{where}: content is", "and only text is learned")
    return _without_nulls(message)


def _check_text(value: Any, where: str, demand: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{where} {_kind(value)}, {demand}")
    try:
        value.encode()
    except UnicodeEncodeError as e:  # JSON can spell it, but no tokenizer reads it
        raise DataError(f"{where} half a character (a lone surrogate at {e.start}), {demand}") from None


def _without_nulls(value: Any) -> Any:
    """Columnar files give every message the keys of all others, as nulls; a template would take them for real."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    """What a value is, in the words of a JSON file."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "nothing" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
