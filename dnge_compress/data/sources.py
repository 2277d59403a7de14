"""The rows of a recipe's sources: files, the splits of folders, slices of splits, data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dnge_compress.core.errors import DataError, first_line
from dnge_compress.data.fields import check_columns, fields
from dnge_compress.data.formats import Placed, RowFile, quiet_datasets
from dnge_compress.data.row_files import SUFFIXES, is_on_hub, wanted
from dnge_compress.recipes.job_schema import COLUMNS, Dataset


def check_sources(sources: Iterable[Dataset], folder: Path) -> None:
    """Refuse what can be refused before anything is loaded. Raises DataError.

    Files must be there, of a known format and not empty; their first rows must fit the type. Relative paths are looked
    for in `folder`. Hub ids are taken as they are.
    """
    sources = list(sources)
    if sum(source.type == "sampled" for source in sources) > 1:
        raise DataError("datasets: type 'sampled' is given twice and would write the same text; give it more tokens")
    for source in sources:
        if source.type == "sampled":
            continue
        if is_on_hub(source, folder):
            with quiet_datasets():  # now rather than later, if it isn't installed
                continue
        for file in (file for files in _wanted(source, folder).values() for file in files):
            for place, row in file.head():
                fields(row, source, place)


def open_tables(source: Dataset, folder: Path) -> Sequence[RowFile] | Sequence[Placed]:
    """The rows of a source, one table per file. Raises DataError."""
    if is_on_hub(source, folder):
        return [_from_hub(source)]
    files = _wanted(source, folder)
    return _sliced(files, source) if "[" in source.split else [file for found in files.values() for file in found]


def source_of(path: Path) -> Dataset:
    """The rows of one file, of the kind that its columns tell. Raises DataError."""
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "no such file"
        raise DataError(f"data file '{path}' can't be read: {what}; name a file of rows ({', '.join(SUFFIXES)})")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"data file '{path}' is none of {', '.join(SUFFIXES)}; convert it to one of them")
    columns = RowFile(path, Dataset(path=str(path))).columns()
    for kind in ("text", "prompt_completion", "messages"):
        if set(COLUMNS[kind]) <= set(columns):
            return Dataset(path=str(path), type=kind)
    there = ", ".join(columns) or "no columns"
    raise DataError(f"data file '{path}' has {there}; its rows need text, or prompt and completion, or messages")


def spans(source: Dataset, lengths: Mapping[str, int]) -> list[Any]:
    """The slices of a source's splits of so many rows, each with `splitname`, `from_` and `to`. Raises DataError."""
    try:
        with quiet_datasets() as datasets:
            return list(datasets.ReadInstruction.from_spec(source.split).to_absolute(lengths))
    except (ValueError, AssertionError) as e:
        reason = first_line(e)
        raise DataError(f"'{source.path}': split '{source.split}' can't be read ({reason}); e.g. train[:90%]") from None


def _wanted(source: Dataset, folder: Path) -> dict[str, list[RowFile]]:
    return {name: [RowFile(file, source) for file in files] for name, files in wanted(source, folder).items()}


def _sliced(files: dict[str, list[RowFile]], source: Dataset) -> list[RowFile]:
    """The files that `split` asks for, each cut to its part of a slice such as "train[:90%]"."""
    rows = {file.path: len(file) for parts in files.values() for file in parts}
    lengths = {split: sum(rows[file.path] for file in parts) for split, parts in files.items()}
    taken = []
    for span in spans(source, lengths):
        before = 0
        for file in files[span.splitname]:
            low, high = max(span.from_ - before, 0), min(span.to - before, rows[file.path])
            if low < high:
                taken.append(replace(file, low=low, high=high))
            before += rows[file.path]
    if not taken:
        raise DataError(f"'{source.path}': split '{source.split}' takes none of its {sum(lengths.values())} rows")
    return taken


def _from_hub(source: Dataset) -> Placed:
    files = list(source.data_files) if isinstance(source.data_files, tuple) else source.data_files
    with quiet_datasets() as datasets:
        try:
            rows = datasets.load_dataset(
                source.path, source.name, data_files=files, split=source.split, revision=source.revision
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as e:
            raise DataError(
                f"'{source.path}' is no file or folder beside the recipe, and the hub doesn't give it: {first_line(e)}"
            ) from e
    check_columns(rows.column_names, source, f"'{source.path}'")
    chosen = rows.select_columns([source.column(name) for name in COLUMNS[source.type]])
    return ((f"'{source.path}', row {number}", row) for number, row in enumerate(chosen, 1))
