"""Which files a source of rows means: one file, or those of a folder that belong to a split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dnge_compress.core.errors import DataError, nearest
from dnge_compress.recipes.data_schema import Dataset

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
# Beside files of another format these are a README.txt or a dataset_info.json, not rows.
COMPANIONS = (".json", ".txt")
# A folder's files are told apart as `datasets` does on the hub: by a word of their path.
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_on_hub(source: Dataset, folder: Path) -> bool:
    """Whether the path can only be a hub id: nothing of that name is there, and it isn't spelled like a file."""
    path = Path(source.path)
    local = source.path.startswith(("/", "./", "../", "~")) or path.suffix.lower() in SUFFIXES
    return not local and not (folder / path).exists() and HUB_ID.fullmatch(source.path) is not None


def locate(source: Dataset, folder: Path) -> dict[str, list[Path]]:
    """The files behind a path by split, of one format. Raises DataError.

    A single file is all "train". In a folder the words train, validation (valid, val, dev) and test (eval) in a file's
    path tell its split; if no path holds one, everything is "train". `data_files` (names or globs) picks some of them.
    """
    path = folder / Path(source.path).expanduser()
    if not path.exists():
        where = "" if Path(source.path).is_absolute() else " (a relative path begins beside its recipe)"
        raise DataError(f"data '{path}' doesn't exist; {_beside(path)}{where}")
    for key in ("name", "revision", *(() if path.is_dir() else ("data_files",))):
        if getattr(source, key) is not None:
            raise DataError(f"'{path}' is on this machine, where '{key}' means nothing; leave it out")
    if path.is_dir():
        return _by_split(_of_one_format(_in_folder(path, source.data_files), path), path, source.data_files)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"data file '{path}' is none of {', '.join(SUFFIXES)}; convert it to one of them")
    return {"train": [path]}


def _beside(path: Path) -> str:
    """What a missing path may have meant, of the files and folders that lie where it should."""
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}' either"
    there = [p for p in path.parent.iterdir() if not _is_hidden(p.relative_to(path.parent))]
    known = [p.name for p in there if p.is_dir() or p.suffix.lower() in SUFFIXES]
    return nearest(path.name, known) if known else f"nothing in '{path.parent}' can be read as rows; name another place"


def wanted(source: Dataset, folder: Path) -> dict[str, list[Path]]:
    """The files of the splits that a source names: "train" and "test" of "train[:90%]+test". Raises DataError."""
    known = locate(source, folder)
    names = [part.split("[")[0].split("(")[0].strip() for part in source.split.split("+")]
    for name in names:
        if name not in known:
            raise DataError(f"'{source.path}' has no split '{name}'; {nearest(name, known)}")
    return {name: known[name] for name in names}


def _in_folder(path: Path, data_files: str | tuple[str, ...] | None) -> list[Path]:
    patterns = (data_files,) if isinstance(data_files, str) else data_files or ("**/*",)
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted(p for p in path.glob(pattern) if p.is_file() and not _is_hidden(p.relative_to(path)))
        if data_files is not None and not matches:
            there = [p.relative_to(path) for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES]
            known = [p.as_posix() for p in there if not _is_hidden(p)]
            raise DataError(f"data_files: '{path}' holds no '{pattern}'; {nearest(pattern, known)}")
        found += [p for p in matches if p not in found]
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _of_one_format(files: Iterable[Path], folder: Path) -> list[Path]:
    files = list(files)
    formats = {f.suffix.lower() for f in files} & set(SUFFIXES)
    chosen = sorted(formats - set(COMPANIONS)) or sorted(formats)
    if not chosen:
        raise DataError(f"data folder '{folder}' holds no file of a kind that is read: {', '.join(SUFFIXES)}")
    if len(chosen) > 1:
        raise DataError(f"data folder '{folder}' mixes {' and '.join(chosen)} files; name those to read in data_files")
    return [f for f in files if f.suffix.lower() == chosen[0]]


def _by_split(files: list[Path], folder: Path, data_files: str | tuple[str, ...] | None) -> dict[str, list[Path]]:
    if data_files is not None:
        return {"train": files}
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_word(file.relative_to(folder), SPLIT_WORDS), []).append(file)
    loose = splits.pop("", [])
    if loose and splits:
        named = next(iter(splits.values()))[0]
        raise DataError(
            f"data folder '{folder}': '{named.name}' is named after a split and '{loose[0].name}' isn't; "
            "name the files to read in data_files"
        )
    return splits or {"train": loose}


def _split_word(path: Path, words: Mapping[str, set[str]]) -> str:
    parts = re.split(r"[^a-z]+", path.with_suffix("").as_posix().lower())
    return next((split for split, known in words.items() if known & set(parts)), "")
