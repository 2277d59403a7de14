"""Which tokens are used: those that a tokenizer cuts texts into, and those written in some scripts alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers

from dnge_compress.core.errors import DataError
from dnge_compress.signals.tokenizer import rendered
from dnge_compress.vocabulary.tokenizer import whole_texts

TEXTS = 1000  # that are cut up at a time
BLOCK = 100_000  # characters of a file that are cut up as one text, at least
SHARED = ("Common", "Inherited")  # digits, marks, spaces: no script's own
TALK = (
    ({"role": "user", "content": "a"},),
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    ({"role": "system", "content": "c"}, {"role": "user", "content": "a"}),
)


def used_ids(tokenizer: Any, texts: Iterable[str]) -> set[int]:
    """The ids that texts are cut into, with those that a chat template writes. Raises DataError."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise DataError("texts must be an iterable of texts, not one text; wrap it in a list")
    found: set[int] = set()
    checked, backend, size = _checked(texts), whole_texts(tokenizer), 0
    while batch := list(islice(checked, TEXTS)):
        size += len(batch)
        found |= _ids_of(backend, batch)
    if not size:
        raise DataError("texts is empty; pass those that the model will read and write")
    return found | _ids_of(backend, list(_templates(tokenizer)))


def texts_in(path: Path) -> Iterator[str]:
    """The texts of a file: every line alone, without its spaces around, and long pieces of the whole. Raises DataError.

    So the tokens of line ends and indents count as used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"data file '{path}' can't be read: {getattr(e, 'strerror', None) or e}") from None
    if not text.strip():
        raise DataError(f"data file '{path}' holds no text")
    block: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            yield line.strip()
        block.append(line)
        size += len(line)
        if size >= BLOCK:
            yield "".join(block)
            block, size = [], 0
    yield "".join(block)


def written_in(tokenizer: Any, ids: Iterable[int], scripts: Sequence[str]) -> set[int]:
    """Those of some tokens that are written in the scripts (Unicode's names, such as "Latin") and in shared characters.

    Parts of characters count as shared. Raises DataError for a script that Unicode doesn't know.
    """
    for script in scripts:
        _pattern((script,))
    letters = normalizers.Replace(_pattern((*scripts, *SHARED)), "")
    decode = whole_texts(tokenizer).decode
    return {i for i in ids if not letters.normalize_str(decode([i], skip_special_tokens=False))}


def _pattern(scripts: Sequence[str]) -> Any:
    try:
        if not all(script.replace("_", "").isalpha() for script in scripts):
            raise ValueError
        return Regex("[" + "".join(rf"\p{{{script}}}" for script in scripts) + "]+")
    except Exception:  # tokenizers raises bare exceptions
        raise DataError(
            f"'{scripts[0]}' is no script that Unicode knows; write its name, such as Latin, Cyrillic, Han or Arabic"
        ) from None


def _ids_of(backend: Any, texts: list[str]) -> set[int]:
    encodings = backend.encode_batch(texts, add_special_tokens=True)
    return {i for encoding in encodings for i in encoding.ids}


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {i} is a {type(text).__name__}; pass texts, not tokens")
        yield text


def _templates(tokenizer: Any) -> Iterator[str]:
    """What a chat template sets around turns; it may refuse some."""
    if not getattr(tokenizer, "chat_template", None):
        return
    for turns in TALK:
        try:
            yield rendered(tokenizer, turns, tokenize=False, add_generation_prompt=True)
        except DataError:
            raise
        except Exception:  # templates raise what they like
            continue
