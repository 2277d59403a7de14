"""The rows of a recipe's sources: files, the splits of folders, slices of splits, data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dnge_compress.core.errors import DataError, first_line
from dnge_compress.data.fields import check_columns
from dnge_compress.data.formats import Placed, RowFile, quiet_datasets
from dnge_compress.data.kinds import said, told
from dnge_compress.data.lessons import lesson
from dnge_compress.data.row_files import is_on_hub, wanted
from dnge_compress.recipes.data_schema import Dataset, columns_of
from dnge_compress.recipes.library import validate
from dnge_compress.recipes.yaml_lines import parse_value


@dataclass(frozen=True)
class Opened:
    """A source whose type is known, how its rows are read, `said` in words, and those rows, a table per file."""

    source: Dataset
    said: str
    tables: Sequence[RowFile] | Sequence[Placed]


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
        known, _ = settled(source, folder)
        for file in (file for files in _wanted(known, folder).values() for file in files):
            for place, row in file.head():
                lesson(row, known, place, speaks=True)


def settled(source: Dataset, folder: Path) -> tuple[Dataset, str]:
    """A source of local files with its type, told from the first row if the recipe leaves it open, and that in words.
    Raises DataError."""
    files = [file for found in _wanted(source, folder).values() for file in found]
    place, row = files[0].first()
    known = told(source, row, place)
    return known, said(known, row)


def opened(source: Dataset, folder: Path) -> Opened:
    """The rows of a source. Raises DataError."""
    if is_on_hub(source, folder):
        return _from_hub(source)
    known, words = settled(source, folder)
    files = _wanted(known, folder)
    tables = _sliced(files, known) if "[" in known.split else [file for found in files.values() for file in found]
    return Opened(known, words, tables)


def source_of(given: str | Path) -> Dataset:
    """What a command's --data names: a file, a folder of files, a hub id, or a source as recipes write it ("{path: …,
    split: …}"). Raises DataError, or RecipeError for keys that nobody knows."""
    text = str(given)
    if not text:
        raise DataError("--data is empty; name a file, a folder of files, or a hub id")
    if text.startswith("{"):
        source = validate(parse_value(text, "--data", "--data"), "--data", kind=Dataset)
    else:
        source = Dataset(path=text)
    if source.type == "sampled":
        raise DataError("--data: type 'sampled' has no rows of its own; leave --data out, and the model writes them")
    if not is_on_hub(source, Path.cwd()):
        source = source.model_copy(update={"path": str(Path.cwd() / Path(source.path).expanduser())})
    check_sources([source], Path.cwd())
    return source


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


def _from_hub(source: Dataset) -> Opened:
    files = list(source.data_files) if isinstance(source.data_files, tuple) else source.data_files
    with quiet_datasets() as datasets:
        try:
            rows = datasets.load_dataset(
                source.path, source.name, data_files=files, split=source.split, revision=source.revision
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as e:
            raise DataError(
                f"'{source.path}' is no file or folder here, and the hub doesn't give it: {first_line(e)}"
            ) from e
    place = f"'{source.path}'"
    if not len(rows):
        raise DataError(f"{place} holds no rows in split '{source.split}'; name another split")
    known = told(source, rows[0], place)
    check_columns(rows.column_names, known, place)
    chosen = rows.select_columns(
        [name for name in map(known.column, columns_of(known.type)) if name in rows.column_names]
    )
    table = ((f"{place}, row {number}", row) for number, row in enumerate(chosen, 1))
    return Opened(known, said(known, rows[0]), [table])
