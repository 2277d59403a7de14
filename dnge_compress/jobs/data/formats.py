"""One file of rows, read through `datasets`; every error names the file and the row.

`datasets` guesses the type of every column: dates in a .jsonl file come back as timestamps, digits in a .csv file as
integers, and "NA" as nothing. It gets no chance to: a .jsonl file is read through it as lines, each of which is parsed
here (so that a bad line's number is known, too), and the columns of a .csv file are declared to be text.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dnge_compress.core.errors import DataError, first_line
from dnge_compress.jobs.data.fields import check_columns
from dnge_compress.recipes.job_schema import COLUMNS, Dataset

ENCODING = "utf-8-sig"  # UTF-8; a byte-order mark isn't part of the first row
HEAD = 100
BATCH = 1000
LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class RowTable:
    """Rows of one file or hub data set, in order. Iterating gives pairs: where the row stands, and the row.

    `first` is the number of rows before these in the file. A .txt file's rows are its lines, breaks included.
    """

    origin: str
    suffix: str
    rows: Any
    first: int = 0

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        unit = "line" if self.suffix in (".jsonl", ".txt") else "row"
        for number, row in enumerate(_each(self.rows), self.first + 1):
            place = f"'{self.origin}', {unit} {number}"
            if self.suffix != ".jsonl":
                yield place, row
            elif row["text"].strip():
                yield place, _parsed(row["text"], place)

    def part(self, low: int, high: int) -> RowTable:
        """Rows `low` to `high`, the latter not included."""
        rows = self.rows[low:high] if isinstance(self.rows, list) else self.rows.select(range(low, high))
        return RowTable(origin=self.origin, suffix=self.suffix, rows=rows, first=low)


def head_of(file: Path, source: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first rows of a file as a table gives them, without `datasets`; what isn't cheap to see is left out.

    Raises DataError for a file that is empty, no text, or lacks a column.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        check_columns(_parquet_columns(file), source, f"'{file}'")
    elif suffix == ".csv":
        yield from islice(_csv_rows(file), HEAD)
    elif suffix == ".txt":
        _check_not_blank(file)
        check_columns(["text"], source, f"'{file}'")
    else:
        _check_not_blank(file)
        if not _is_list(file):
            lines = ((number, line) for number, line in _lines(file) if line.strip())
            for number, line in islice(lines, HEAD):
                place = f"'{file}', line {number}"
                yield place, _parsed(line, place)


def open_file(file: Path, source: Dataset, cache: Path) -> RowTable:
    """All rows of a file; `datasets` writes below `cache`. Raises DataError."""
    suffix = file.suffix.lower()
    if suffix == ".csv":
        options = {"encoding": ENCODING, "keep_default_na": False, "features": _text_columns(file)}
        return RowTable(origin=str(file), suffix=suffix, rows=_load("csv", file, cache, options))
    if suffix == ".parquet":
        check_columns(_parquet_columns(file), source, f"'{file}'")
        columns = [source.column(name) for name in COLUMNS[source.type]]
        return RowTable(origin=str(file), suffix=suffix, rows=_load("parquet", file, cache, {"columns": columns}))
    _check_not_blank(file)
    if _is_list(file):
        return RowTable(origin=str(file), suffix=suffix, rows=_json_list(file))
    rows = _load("text", file, cache, {"encoding": ENCODING, "keep_linebreaks": suffix == ".txt"})
    return RowTable(origin=str(file), suffix=".txt" if suffix == ".txt" else ".jsonl", rows=rows)


@contextmanager
def quiet_datasets() -> Iterator[Any]:
    """The package `datasets`, without its progress bars and its own account of errors. Raises DataError without it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("reading data for a job needs datasets: pip install 'dnge-compress[jobs]'") from error
    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _load(builder: str, file: Path, cache: Path, options: dict[str, Any]) -> Any:
    with quiet_datasets() as datasets:
        try:
            # Escaped, because `datasets` takes the brackets of "data[1].csv" for a pattern (its issue 4306).
            return datasets.load_dataset(
                builder, data_files=glob.escape(str(file)), split="train", cache_dir=str(cache), **options
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as e:
            cause = e.__cause__ or e
            if isinstance(cause, UnicodeDecodeError):
                raise _not_utf8(file) from None
            raise DataError(f"data file '{file}' can't be read: {first_line(cause)}") from e


def _each(rows: Any) -> Iterator[dict[str, Any]]:
    if isinstance(rows, list):
        yield from rows
        return
    for batch in rows.iter(BATCH):  # several times as fast as row by row
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(f"{place}: not JSON ({e.msg} at column {e.colno}); each line must be one object") from None
    return _object(row, place)


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be an object with columns as keys, and this is {json.dumps(row)[:40]}")
    return row


def _is_list(file: Path) -> bool:
    """Whether a .json file is one list of objects; if not, it is taken to hold an object per line."""
    if file.suffix.lower() != ".json":
        return False
    return next(line for _, line in _lines(file) if line.strip()).lstrip().startswith("[")


def _json_list(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text(encoding=ENCODING))
    except json.JSONDecodeError as e:
        raise DataError(f"'{file}', line {e.lineno}: not JSON ({e.msg} at column {e.colno})") from None
    except UnicodeDecodeError:
        raise _not_utf8(file) from None
    if not rows:
        raise DataError(f"data file '{file}' is empty")
    return [_object(row, f"'{file}', row {number}") for number, row in enumerate(rows, 1)]


def _check_not_blank(file: Path) -> None:
    if not any(line.strip() for _, line in _lines(file)):
        raise DataError(f"data file '{file}' is empty")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with _opened(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, line.decode(ENCODING if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"'{file}', line {number}: not UTF-8; save the file in that encoding") from None


def _opened(file: Path, mode: str) -> Any:
    try:
        return file.open(mode) if mode == "rb" else file.open(mode, encoding=ENCODING, newline="")
    except OSError as e:
        raise DataError(f"data file '{file}' can't be read: {e.strerror}") from None


def _not_utf8(file: Path) -> DataError:
    """The error for the first line that isn't UTF-8, looked for only once reading has failed."""
    try:
        for _ in _lines(file):
            pass
    except DataError as e:
        return e
    return DataError(f"data file '{file}' isn't UTF-8; save it in that encoding")


def _text_columns(file: Path) -> Any:
    """Every column of a .csv file as text, once all its rows have proved to be as long as its header.

    pandas, which `datasets` reads with, fills short rows up, and takes surplus columns for an index, without a word.
    """
    for _ in _csv_rows(file):
        pass
    with quiet_datasets() as datasets, _opened(file, "r") as lines:
        return datasets.Features({name: datasets.Value("string") for name in next(csv.reader(lines))})


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    limit = csv.field_size_limit(LONGEST_CELL)  # 131,072 characters by default: less than a book
    with _opened(file, "r") as lines:
        reader, number = csv.reader(lines, strict=True), 0
        try:
            header = next(reader, [])
            for number, row in enumerate(filter(None, reader), 1):
                place = f"'{file}', row {number} (line {reader.line_num})"
                if len(row) != len(header):
                    raise DataError(f"{place}: {len(row)} values under {len(header)} column names; quote its commas")
                yield place, dict(zip(header, row, strict=True))
        except csv.Error as e:
            raise DataError(f"'{file}', line {reader.line_num}: not CSV ({e})") from None
        except UnicodeDecodeError:
            raise _not_utf8(file) from None
        finally:
            csv.field_size_limit(limit)
    if not number:
        raise DataError(f"data file '{file}' is empty" + (", but for its column names" if header else ""))


def _parquet_columns(file: Path) -> list[str]:
    from pyarrow import ArrowException, parquet  # comes with datasets

    try:
        about = parquet.ParquetFile(file)
    except (OSError, ArrowException) as e:
        raise DataError(f"data file '{file}' is no readable .parquet file: {first_line(e)}") from None
    if not about.metadata.num_rows:
        raise DataError(f"data file '{file}' is empty")
    return list(about.schema_arrow.names)
