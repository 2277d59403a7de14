"""About how many tokens the files of a source hold, told from their sizes and the beginning of one, without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from dnge_compress.core.folders import whole_folder
from dnge_compress.data.formats import RowFile
from dnge_compress.data.row_files import is_on_hub, wanted
from dnge_compress.data.sources import settled, spans
from dnge_compress.recipes.data_schema import Dataset

BYTES_PER_TOKEN = 4  # of English, about
SAMPLE_BYTES = 1 << 16  # of a text file, that tell how many bytes a token has here
TEXT_FILES = (".txt", ".jsonl", ".json", ".csv")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?')  # of JSON; a key has a colon behind it


def tokenizer_in(model: str) -> Tokenizer | None:
    """The tokenizer that counts a model's tokens; None where there is no tokenizer.json, or one that can't be read,
    which is said before a job begins."""
    file = whole_folder(Path(model)) / "tokenizer.json"
    try:
        found = Tokenizer.from_file(str(file)) if file.is_file() else None
    except Exception:  # tokenizers raises nothing else
        return None
    if found is not None:
        found.no_truncation()
        found.no_padding()
    return found


def about_tokens(source: Dataset, tokenizer: Tokenizer | None) -> int | None:
    """How many tokens a source of rows has, about; None for one on the hub."""
    if is_on_hub(source, Path.cwd()):
        return None
    source, _ = settled(source, Path.cwd())
    splits = {split: [RowFile(f, source) for f in files] for split, files in wanted(source, Path.cwd()).items()}
    sizes = {split: sum(file.path.stat().st_size for file in files) for split, files in splits.items()}
    total = sum(sizes.values())
    if "[" in source.split or source.max_rows is not None:
        rows = {split: sum(file.about_rows() for file in files) for split, files in splits.items()}
        taken = rows
        if "[" in source.split:
            taken = dict.fromkeys(rows, 0)
            for span in spans(source, rows):
                taken[span.splitname] += span.to - span.from_
        total = sum(sizes[split] * taken[split] // max(1, rows[split]) for split in rows)
        if source.max_rows is not None:
            total = total * min(source.max_rows, sum(taken.values())) // max(1, sum(taken.values()))
    return int(total / _bytes_per_token(tokenizer, [file for files in splits.values() for file in files]))


def _bytes_per_token(tokenizer: Tokenizer | None, files: Sequence[RowFile]) -> float:
    """Bytes of a file for each token that a tokenizer makes of its text, told from the beginning of one; as of English
    without a tokenizer or a text file."""
    of_text = next((file for file in files if file.suffix in TEXT_FILES), None)
    if of_text is None or tokenizer is None:
        return BYTES_PER_TOKEN
    with of_text.path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
    text = sample.decode(errors="ignore")
    try:
        ids = tokenizer.encode(_strings_in(text) if "json" in of_text.suffix else text, add_special_tokens=False).ids
    except Exception:  # as of a vocabulary without its own token for what is unknown; tokenizers raises nothing else
        return BYTES_PER_TOKEN
    return len(sample) / max(1, len(ids))


def _strings_in(text: str) -> str:
    """The values that are texts in a part of a JSON file, a line each."""
    return "\n".join(json.loads(f'"{string}"', strict=False) for string, colon in STRING.findall(text) if not colon)
