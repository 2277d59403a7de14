"""What a row must hold for its type; errors name the row and the column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dnge_compress.core.errors import DataError, nearest
from dnge_compress.recipes.data_schema import COLUMNS, OPTIONAL, Dataset

NO_TEXT = ("messages", "conversations", "tools", "id")  # columns that hold lists, or anything
LISTS = ("prompt", "completion")  # columns that may hold messages in the place of a text


def check_columns(names: Iterable[str], source: Dataset, place: str) -> None:
    """Raises DataError if a column that the type needs isn't among `names`, or one that was named."""
    names = list(names)
    named = [ours for ours in OPTIONAL.get(source.type, ()) if source.columns.get(ours)]
    for ours in (*COLUMNS[source.type], *named):
        theirs = source.column(ours)
        if theirs not in names:
            there = f"{nearest(theirs, names)} (there are: {', '.join(sorted(names))})" if names else "there is none"
            rename = f"say which one is meant with columns: {{{ours}: …}}"
            raise DataError(f"{place}: no column '{theirs}' for type '{source.type}'; {there}; {rename}")


def fields(row: Mapping[str, Any], source: Dataset, place: str) -> dict[str, Any] | None:
    """The columns of a row under our names, or None if there is nothing to learn in it. Raises DataError.

    A value that is null or blank is nothing to learn; all but the last may be blank. Of the columns that a type needn't
    have, those are taken that hold something.
    """
    check_columns(row, source, place)
    ours = {name: row[source.column(name)] for name in COLUMNS[source.type]}
    if any(value is None for value in ours.values()):
        return None
    more = {name: row.get(source.column(name)) for name in OPTIONAL.get(source.type, ()) if source.column(name)}
    ours |= {name: value for name, value in more.items() if value not in (None, "", [])}
    for name, value in ours.items():
        if name not in NO_TEXT and not (name in LISTS and isinstance(value, list)):
            check_text(value, f"{place}: column '{source.column(name)}' holds", "not text")
    learned = ours[COLUMNS[source.type][-1]]
    return ours if (learned.strip() if isinstance(learned, str) else learned) else None


def check_text(value: Any, where: str, demand: str) -> None:
    """Raise DataError, which begins with `where` and ends with the `demand`, for a value that is no text."""
    if not isinstance(value, str):
        raise DataError(f"{where} {kind_in_json(value)}, {demand}")
    try:
        value.encode()
    except UnicodeEncodeError as e:  # JSON can spell it, but no tokenizer reads it
        raise DataError(f"{where} half a character (a lone surrogate at {e.start}), {demand}") from None


def kind_in_json(value: Any) -> str:
    """What a value is, in the words of a JSON file."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "nothing" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
