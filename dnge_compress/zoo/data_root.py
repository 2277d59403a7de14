"""Where the shared data sets lie, and where what is slow to derive from them is kept, memory-mapped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dnge_compress.core.errors import DataError, first_line
from dnge_compress.core.files import atomic_file

Split = Literal["train", "held-out"]

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DataRoot:
    """Where the data sets lie, and where what is derived from them is kept."""

    data: Path
    cache: Path

    @classmethod
    def find(cls, data: Path | str | None = None, cache: Path | str | None = None) -> DataRoot:
        """The folder given, else that of DNGE_DATA, else ../shared/data beside the repository. What is derived from its
        files is kept for these files alone, in `cache` or zoo/cache.

        Raises: DataError if there is no such folder.
        """
        folder = Path(data or os.environ.get("DNGE_DATA") or _ROOT.parent / "shared" / "data")
        if not folder.is_dir():
            raise DataError(f"no data folder at {folder}; pass its path or set DNGE_DATA")
        return cls(folder, Path(cache or _ROOT / "zoo" / "cache") / _told_by(folder))

    def file(self, name: str) -> Path:
        """Path of one data file. Raises: DataError if it is missing."""
        path = self.data / name
        if not path.is_file():
            raise DataError(f"{name} is missing from {self.data}; pass the data folder or set DNGE_DATA")
        return path


def _told_by(folder: Path) -> str:
    """What tells a folder and the files in it from others, and from themselves before a change."""
    files = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file())
    return hashlib.sha256(repr((str(folder.resolve()), files)).encode()).hexdigest()[:12]


def cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array kept at `path`, memory-mapped; made on first use."""
    if not path.exists():
        made = make()
        with atomic_file(path) as part, part.open("wb") as file:  # np.save gives a path another name
            np.save(file, made)
    return np.load(path, mmap_mode="r")


def table(file: str, data_root: DataRoot, columns: Sequence[str]) -> Any:
    """Columns of a Parquet file of the data folder. Raises DataError if the file or pyarrow is missing, or the file is
    damaged."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("reading the data sets needs pyarrow: pip install 'dnge-compress[pretrain]'") from error
    path = data_root.file(file)
    try:
        lacking = sorted(set(columns) - set(parquet.read_schema(path).names))
        if not lacking:
            return parquet.read_table(path, columns=list(columns))
    except (OSError, pyarrow.ArrowException) as e:
        raise DataError(f"'{path}' is no Parquet file, or damaged ({first_line(e)}); copy it there again") from e
    raise DataError(
        f"'{path}' has no column {', '.join(lacking)}, which the data set's own file has; copy it there again"
    )
