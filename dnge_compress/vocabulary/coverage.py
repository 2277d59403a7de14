"""Which tokens are used: those that a tokenizer cuts texts into, and those written in some scripts alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import regex

from dnge_compress.core.errors import DataError
from dnge_compress.signals.tokenizer import rendered
from dnge_compress.vocabulary.tokenizer import whole_texts

TEXTS = 1000  # that are cut up at a time
SHARED = ("Common", "Inherited")  # digits, marks, spaces: no script's own
NAME = re.compile("[A-Za-z_ ]+")
ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TOOL = {
    "name": "f",
    "description": "a",
    "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "a"}}, "required": ["x"]},
}
TOOLS = [{"type": "function", "function": TOOL}]
TALK = ([ASKED], [ASKED, ANSWERED], [{"role": "system", "content": "c"}, ASKED, ANSWERED, ASKED])


def used_ids(tokenizer: Any, texts: Iterable[str]) -> set[int]:
    """The ids that texts are cut into. Raises DataError."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise DataError("texts must be an iterable of texts, not one text; wrap it in a list")
    found: set[int] = set()
    checked, backend, size = _checked(texts), whole_texts(tokenizer), 0
    while batch := list(islice(checked, TEXTS)):
        size += len(batch)
        found |= _ids_of(backend, batch)
    if not size:
        raise DataError("texts is empty; pass those that the model will read and write")
    return found


def template_ids(tokenizer: Any) -> set[int] | None:
    """The ids of what the chat template sets around turns and tools, empty without a template; None if it refuses every
    conversation that is tried."""
    if not getattr(tokenizer, "chat_template", None):
        return set()
    written = list(_conversations(tokenizer))
    return _ids_of(whole_texts(tokenizer), written) if written else None


def written_in(tokenizer: Any, ids: Iterable[int], scripts: Sequence[str]) -> set[int]:
    """Those of some tokens that are written in the scripts (Unicode's names, such as "Latin") and in shared characters.

    Parts of characters count as shared. Raises DataError for a script that Unicode doesn't know.
    """
    if isinstance(scripts, str):
        raise DataError(f"scripts must be a list of names, not one text; write ['{scripts}']")
    for script in scripts:
        _refuse_unknown(script)
    letters = regex.compile("[" + "".join(rf"\p{{Script={script}}}" for script in (*scripts, *SHARED)) + "]*")
    decode = whole_texts(tokenizer).decode
    return {i for i in ids if letters.fullmatch(decode([i], skip_special_tokens=False))}


def _refuse_unknown(script: str) -> None:
    try:
        if not NAME.fullmatch(script):
            raise ValueError
        regex.compile(rf"\p{{Script={script}}}")
    except (regex.error, ValueError, TypeError):
        raise DataError(
            f"'{script}' is no script that Unicode knows; write its name, such as Latin, Cyrillic, Han or Arabic"
        ) from None


def _ids_of(backend: Any, texts: list[str]) -> set[int]:
    encodings = backend.encode_batch(texts, add_special_tokens=True)
    return {i for encoding in encodings for i in encoding.ids}


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {i} is a {type(text).__name__}; pass texts, not tokens")
        yield text


def _conversations(tokenizer: Any) -> Iterator[str]:
    """Short conversations as the chat template writes them; it may refuse some, such as those with tools."""
    tried: list[tuple[list[dict[str, Any]], Any]] = [(turns, tools) for turns in TALK for tools in (None, TOOLS)]
    tried += [
        (_called(arguments), TOOLS) for arguments in ({"x": "d"}, '{"x": "d"}')
    ]  # an object for some, text for others
    for turns, tools in tried:
        for is_asked in (False, True):
            try:
                yield rendered(tokenizer, turns, tools=tools, tokenize=False, add_generation_prompt=is_asked)
            except DataError:
                raise
            except Exception:  # templates raise what they like
                continue


def _called(arguments: Any) -> list[dict[str, Any]]:
    """A question for which a tool is called."""
    call = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": "f", "content": "e"}
    return [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, answer, ANSWERED]
