"""Which tasks of lm-evaluation-harness are put to models; known before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from dnge_compress.core.errors import DataError


@dataclass(frozen=True)
class Tasks:
    """Tasks by name, those in YAML files of a `folder` among them, and how many questions of each are asked at most.
    Raises DataError for no name, a folder that is none or holds what is no YAML, and a limit below one."""

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.names or isinstance(self.names, str):
            raise DataError(f"tasks are a tuple of names, and {self.names!r} is none; write ('arc_easy',)")
        if self.folder is not None:
            _refuse_broken(self.folder)
        if self.limit is not None and self.limit < 1:
            raise DataError(f"a limit of {self.limit} questions asks nothing; give at least 1, or none")


def _refuse_broken(folder: Path) -> None:
    """The harness passes over files that it can't read, and calls their tasks unknown."""
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder; name the one that holds the tasks' YAML files")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise DataError(f"'{folder}' holds no .yaml file; name the folder that holds the tasks' YAML files")
    for file in files:
        try:  # the syntax alone: tags of the harness's own may stand there
            yaml.compose(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as e:
            raise DataError(f"'{file}' is no YAML: {' '.join(str(e).split())}; correct it") from None
