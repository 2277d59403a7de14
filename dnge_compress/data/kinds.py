"""Of which type rows are, told from the columns of the first ones, and said in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnge_compress.core.errors import DataError, nearest
from dnge_compress.recipes.data_schema import COLUMNS, Dataset, columns_of

LEARNED = {
    "text": "all of it is learned",
    "prompt_completion": "the completion is learned",
    "messages": "the assistant's turns are learned",
    "sharegpt": "the assistant's turns are learned",
    "alpaca": "the output is learned",
}
# Of several that fit, the first: what says more about a row comes before its bare text.
TOLD = ("messages", "sharegpt", "prompt_completion", "alpaca", "text")
PREFERENCES = ("chosen", "rejected")


def told(source: Dataset, row: Mapping[str, Any], place: str) -> Dataset:
    """The source with the type that a row of it shows, if the recipe leaves that open ("auto"). Raises DataError.

    Conversations are known by their column (messages or conversations) and by the keys of their messages.
    """
    if source.type != "auto":
        return source
    conversation = _conversation(source, row)
    if conversation is not None:
        return conversation
    kind = next((kind for kind in TOLD[2:] if _fits(source, kind, row)), "")
    if not kind:
        raise DataError(f"{place} has {', '.join(row) or 'no columns'}; {_way_out(row)}")
    return _as(source, kind)


def said(source: Dataset, row: Mapping[str, Any]) -> str:
    """How rows are read, e.g. "alpaca (instruction, input, output; it would do as text, too)"."""
    columns = ", ".join(source.column(name) for name in columns_of(source.type) if source.column(name) in row)
    rest = TOLD[2:] if source.type in TOLD[:2] else TOLD
    plain = source.model_copy(update={"type": "auto", "columns": {}})
    others = [kind for kind in rest if kind != source.type and _fits(plain, kind, row)]
    choice = f"; it would do as {' or '.join(others)}, too" if others else ""
    return f"{source.type} ({columns}{choice})"


def _conversation(source: Dataset, row: Mapping[str, Any]) -> Dataset | None:
    for ours in ("messages", "conversations"):
        theirs = source.column(ours)
        if theirs in row and _may_be(source, (ours, "tools", "system", "id")):
            turns = row[theirs]
            first = turns[0] if isinstance(turns, list) and turns else {}
            kind = "sharegpt" if isinstance(first, Mapping) and "from" in first and "role" not in first else "messages"
            if first == {} and ours == "conversations":
                kind = "sharegpt"
            return _as(source, kind, theirs)
    return None


def _as(source: Dataset, kind: str, conversation: str = "") -> Dataset:
    """The source as one of a kind, with those renamed columns that it has."""
    columns = {ours: theirs for ours, theirs in source.columns.items() if ours in columns_of(kind)}
    if conversation and conversation != COLUMNS[kind][0]:
        columns[COLUMNS[kind][0]] = conversation
    return Dataset.model_validate({**source.model_dump(), "type": kind, "columns": columns})


def _fits(source: Dataset, kind: str, row: Mapping[str, Any]) -> bool:
    return _may_be(source, columns_of(kind)) and all(source.column(name) in row for name in COLUMNS[kind])


def _may_be(source: Dataset, names: tuple[str, ...]) -> bool:
    """Whether all columns that the recipe renames are among those of a kind."""
    return all(ours in names for ours in source.columns if ours not in ("tools", "system", "id"))


def _way_out(row: Mapping[str, Any]) -> str:
    if set(PREFERENCES) <= set(row):
        return (
            "those are preferences, which aren't learned here; give rows with text, prompt and completion, or messages"
        )
    kinds = ", or ".join(" and ".join(columns) for columns in COLUMNS.values() if columns)
    known = [name for kind in TOLD for name in COLUMNS[kind]]
    close = [hint for hint in (nearest(name, known) for name in row) if hint.startswith("did")]
    which = f"{close[0]} " if close else ""
    return f"{which}rows need {kinds}; say which is which with columns: {{text: …}}"
