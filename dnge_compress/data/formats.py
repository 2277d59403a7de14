"""Files of rows, read as a stream; every error names the file and the row. No value's type is ever guessed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dnge_compress.core.errors import DataError, first_line
from dnge_compress.data.fields import check_columns
from dnge_compress.recipes.data_schema import COLUMNS, OPTIONAL, Dataset

ENCODING = "utf-8-sig"  # UTF-8; a byte-order mark isn't part of the first row
HEAD = 100
SAMPLE = 2**20  # bytes
BATCH = 1000
WITH_ROWS = "name one that holds rows"
LONGEST_CELL = 2**31 - 1  # characters; 131,072 by default, less than a book

Placed = Iterator[tuple[str, dict[str, Any]]]  # where a row stands, and the row; blank lines are empty rows


@dataclass(frozen=True)
class RowFile:
    """One file; iterating gives pairs: where a row stands, and the row. Raises DataError, also for an empty file.

    A .txt file's rows are its lines, breaks included. `low` and `high` bound a part of the file.
    """

    path: Path
    source: Dataset
    low: int = 0
    high: int | None = None

    @property
    def suffix(self) -> str:
        """The file's format."""
        return self.path.suffix.lower()

    def __iter__(self) -> Placed:
        return (placed for placed in islice(self._rows(), self.low, self.high) if placed[1])

    def __len__(self) -> int:
        """All rows of the file, blank lines included."""
        return sum(1 for _ in self._rows())

    def about_rows(self) -> int:
        """How many rows the file holds, told from its size and its beginning where counting all would take long."""
        if self.suffix == ".parquet":
            with _parquet(self.path) as table:
                return int(table.metadata.num_rows)
        size = self.path.stat().st_size
        if self._is_list() or size <= SAMPLE:
            return len(self)
        with _opened(self.path, "rb") as file:
            return max(1, round(file.read(SAMPLE).count(b"\n") * size / SAMPLE))

    def head(self) -> Placed:
        """The first rows; none of a list, which can only be read as a whole."""
        return iter(()) if self._is_list() else islice(self, HEAD)

    def first(self) -> tuple[str, dict[str, Any]]:
        """Where the first row stands, and that row with all its columns; of a .txt file that it has a text."""
        if self.suffix == ".txt":
            return f"'{self.path}'", {"text": ""}
        if self.suffix == ".parquet":
            with _parquet(self.path) as table:
                return f"'{self.path}', row 1", next(table.iter_batches(1)).to_pylist()[0]
        found = _first_in_list(self.path) if self._is_list() else None
        return next(iter(self)) if found is None else found

    def _rows(self) -> Placed:
        if self.suffix == ".csv":
            return _csv_rows(self.path)
        if self.suffix == ".parquet":
            return _parquet_rows(self.path, self.source)
        if self.suffix == ".txt":
            check_columns(["text"], self.source, f"'{self.path}'")
            return _not_blank(self.path, ((place, {"text": line}) for place, line in _lines(self.path)))
        return _json_list(self.path) if self._is_list() else _not_blank(self.path, _json_lines(self.path))

    def _is_list(self) -> bool:
        """Whether a .json file is one list of objects; if not, it is taken to hold an object per line."""
        if self.suffix != ".json":
            return False
        return next((line for _, line in _lines(self.path) if line.strip()), "").lstrip().startswith("[")


def _not_blank(file: Path, rows: Placed) -> Placed:
    is_blank = True
    for place, row in rows:
        is_blank = is_blank and not str(row.get("text", "x") if row else "").strip()
        yield place, row
    if is_blank:
        blank = ", but for rows without text" if file.stat().st_size else ""
        raise DataError(f"data file '{file}' is empty{blank}; {WITH_ROWS}")


def _json_lines(file: Path) -> Placed:
    for place, line in _lines(file):
        yield place, _parsed(line, place) if line.strip() else {}


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(f"{place}: not JSON ({e.msg} at column {e.colno}); each line must be one object") from None
    except (ValueError, RecursionError) as e:  # numbers of thousands of digits, a thousand brackets
        raise DataError(f"{place}: not JSON ({first_line(e)}); each line must be one object") from None
    return _object(row, place)


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be an object with columns as keys, and this is {json.dumps(row)[:40]}")
    return row


def _json_list(file: Path) -> Placed:
    try:
        rows = json.loads("".join(line for _, line in _lines(file)))
    except json.JSONDecodeError as e:
        raise DataError(f"'{file}', line {e.lineno}: not JSON ({e.msg} at column {e.colno})") from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"'{file}' is no JSON ({first_line(e)})") from None
    if not rows:
        raise DataError(f"data file '{file}' is empty; {WITH_ROWS}")
    for number, row in enumerate(rows, 1):
        place = f"'{file}', row {number}"
        yield place, _object(row, place)


def _first_in_list(file: Path) -> tuple[str, dict[str, Any]] | None:
    """The first row of a list, read without the others; None if it is longer than a sample, or anything is wrong."""
    with _opened(file, "rb") as opened:
        text = opened.read(SAMPLE).decode(ENCODING, "ignore")
    try:
        row, _ = json.JSONDecoder().raw_decode(text.partition("[")[2].lstrip())
    except (ValueError, RecursionError):
        return None
    return (f"'{file}', row 1", row) if isinstance(row, dict) else None


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Where a line stands, and the line, which ends as it does in the file, or in a line feed for Windows' break."""
    with _opened(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode(ENCODING if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"'{file}', line {number}: not UTF-8; save the file in that encoding") from None
            yield f"'{file}', line {number}", text.replace("\r\n", "\n")


def _opened(file: Path, mode: str) -> Any:
    try:
        return file.open(mode) if mode == "rb" else file.open(mode, encoding=ENCODING, newline="")
    except OSError as e:
        raise DataError(f"data file '{file}' can't be read: {e.strerror}") from None


def _csv_rows(file: Path) -> Placed:
    limit = csv.field_size_limit(LONGEST_CELL)
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
            for _ in _lines(file):  # names the line
                pass
            raise
        finally:
            csv.field_size_limit(limit)
    if not number:
        raise DataError(f"data file '{file}' is empty{', but for its column names' if header else ''}; {WITH_ROWS}")


def _parquet_rows(file: Path, source: Dataset) -> Placed:
    with _parquet(file) as table:
        names = table.schema_arrow.names
        check_columns(names, source, f"'{file}'")
        columns = [source.column(name) for name in COLUMNS[source.type]]
        columns += [name for name in map(source.column, OPTIONAL.get(source.type, ())) if name in names]
        batches = table.iter_batches(BATCH, columns=columns)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"'{file}', row {number}", row


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    """An open .parquet file that holds rows. Raises DataError, also for what goes wrong while it is read."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError("reading .parquet files needs pyarrow: pip install 'dnge-compress[jobs]'") from error
    try:
        table = parquet.ParquetFile(file)
        if not table.metadata.num_rows:
            raise DataError(f"data file '{file}' is empty; {WITH_ROWS}")
        yield table
    except (OSError, ArrowException, UnicodeDecodeError) as e:
        raise DataError(f"data file '{file}' is no readable .parquet file: {first_line(e)}") from None


@contextmanager
def quiet_datasets() -> Iterator[Any]:
    """The package `datasets`, without its progress bars and its own account of errors. Raises DataError without it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("slices and data sets of the hub need datasets: pip install 'dnge-compress[jobs]'") from error
    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
