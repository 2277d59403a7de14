"""A model's tokenizer, opened, and made again with fewer tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from dnge_compress.checkpoint.strict_loading import quiet
from dnge_compress.core.errors import ExactnessError, UnsupportedModelError
from dnge_compress.core.strict_json import read_json
from dnge_compress.signals.tokenizer import needed_tokenizer
from dnge_compress.surgery.vocabulary import new_ids
from dnge_compress.vocabulary.pieces import Pieces

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
FILES = (FILE, SETTINGS, "special_tokens_map.json")
PLACES = ("is_local", "local_files_only")  # where a tokenizer was read from, which transformers writes with it
TRIED = 20_000  # pieces that both tokenizers cut up


@dataclass(frozen=True)
class Trimmed:
    """A smaller tokenizer: the object, and the files that make it, by name."""

    tokenizer: Any
    files: Mapping[str, str]


def tokenizer_beside(model: Any) -> Any:
    """The tokenizer that lies beside a model. Raises UnsupportedModelError, DataError for one that can't be read."""
    name = model.name_or_path
    if not name:
        raise UnsupportedModelError(f"this {type(model).__name__} comes from no folder; pass its tokenizer=…")
    with quiet():
        return needed_tokenizer(name, "whose tokens could go")


def pieces_of(tokenizer: Any, rows: int) -> Pieces:
    """The pieces of a tokenizer, for a model with so many rows. Raises UnsupportedModelError for what can't be cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModelError(
            f"a {type(tokenizer).__name__} is written in Python and has no {FILE}, so its tokens stay; "
            "convert it into a fast one first"
        )
    pieces = Pieces(json.loads(backend.to_str()))
    most = max(pieces.ids.values(), default=-1)
    if most >= rows:
        raise UnsupportedModelError(
            f"the tokenizer has a token {most:,}, but the model only {rows:,} rows; they don't belong together, "
            "or the model's embeddings must be resized first"
        )
    return pieces


def whole_texts(tokenizer: Any) -> Any:
    """What cuts up texts inside a tokenizer, without the limits and the padding that its file may ask for."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return backend


def trimmed(tokenizer: Any, pieces: Pieces, keep: tuple[int, ...], config: Any) -> Trimmed:
    """The tokenizer with the tokens `keep` alone, as plain transformers reads it beside a model of such a config.

    Raises ExactnessError if what is read isn't what was written.
    """
    with TemporaryDirectory() as place, quiet():
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        _write(folder / FILE, pieces.without_others(keep))
        _write(folder / SETTINGS, _settings(read_json(folder / SETTINGS), new_ids(keep)))
        files = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}
        texts = {name: f.read_text(encoding="utf-8") for name, f in files.items() if f.suffix in (".json", ".jinja")}
        config.save_pretrained(folder)  # transformers looks there as well
        found = AutoTokenizer.from_pretrained(folder)
    _check(tokenizer, found, new_ids(keep))
    return Trimmed(found, {name: text for name, text in texts.items() if name in FILES or name.endswith(".jinja")})


def _settings(settings: dict[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    for name in PLACES:
        settings.pop(name, None)
    added = settings.get("added_tokens_decoder")
    if added:
        settings["added_tokens_decoder"] = {str(new[int(i)]): token for i, token in added.items()}
    return settings


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(old: Any, new: Any, ids: Mapping[int, int]) -> None:
    """The same tokens under their new ids, and pieces cut up as before where all they were cut into stayed."""
    expected = {token: ids[i] for token, i in old.get_vocab().items() if i in ids}
    found = new.get_vocab()
    if found != expected:
        wrong = min(token for token in {*found, *expected} if found.get(token) != expected.get(token))
        raise ExactnessError(
            f"transformers reads the smaller {type(old).__name__} with another id for '{wrong}'; nothing was changed"
        )
    texts = [old.backend_tokenizer.decode([i]) for i in list(ids)[:TRIED]]
    both = (whole_texts(t).encode_batch(texts, add_special_tokens=True) for t in (old, new))
    for text, before, after in zip(texts, *both, strict=True):
        if ids.keys() >= set(before.ids) and [ids[i] for i in before.ids] != after.ids:
            raise ExactnessError(f"the smaller {type(old).__name__} cuts {text!r} up differently; nothing was changed")
