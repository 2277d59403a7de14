"""What a recipe may say about rows of text: where they are, of which kind, and what their columns are called."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dnge_compress.recipes.schema import RecipeSection, Whole

RowKind = Literal["auto", "text", "prompt_completion", "messages", "sharegpt", "alpaca", "sampled"]
# Which columns a kind of rows needs, what is learned last; `Dataset.columns` renames.
COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "sampled": (),
}
# Which it takes as well, where they are there.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "messages": ("tools", "id"),
    "sharegpt": ("system", "tools", "id"),
    "alpaca": ("system", "input", "id"),
    "prompt_completion": ("tools", "id"),
    "text": ("id",),
}


def columns_of(kind: str) -> tuple[str, ...]:
    """All columns that a kind of rows may have, by our names; those of every kind for "auto"."""
    kinds = COLUMNS if kind == "auto" else (kind,)
    return tuple(dict.fromkeys(name for k in kinds for name in (*COLUMNS[k], *OPTIONAL.get(k, ()))))


class Dataset(RecipeSection):
    """One source of rows.

    `path` is a .jsonl, .json, .parquet, .csv or .txt file, a folder of such, or a hub id (with `name`, `data_files`,
    `revision`); relative files are looked for beside the recipe. `type`: "text" (whole rows are learned),
    "prompt_completion", "messages", "sharegpt" and "alpaca" (only completions, assistant turns and outputs are
    learned), "auto" (told from the columns of the first rows), or "sampled": no file at all, `tokens` tokens written by
    the model itself before it is pruned. `columns` maps our column names to the file's; "" leaves out one that needn't
    be there.
    """

    path: str = ""
    name: str | None = None
    data_files: str | tuple[str, ...] | None = None
    split: str = Field(default="train", min_length=1)
    revision: str | None = None
    type: RowKind = "auto"
    columns: dict[str, str] = Field(default={})
    max_rows: Whole | None = Field(default=None, ge=1)
    tokens: Whole = Field(default=262_144, ge=1024)

    @model_validator(mode="after")
    def _has_a_source(self) -> Dataset:
        if (self.type == "sampled") == bool(self.path):
            raise ValueError("should have a path, unless type is 'sampled', which has none")
        known = columns_of(self.type)
        unknown = sorted(set(self.columns) - set(known))
        if unknown:
            names = ", ".join(known) or "none"
            raise ValueError(f"columns: '{unknown[0]}' is no column of type '{self.type}' (known: {names})")
        needed = {name for kind in COLUMNS if self.type in ("auto", kind) for name in COLUMNS[kind]}
        nameless = next((ours for ours, theirs in self.columns.items() if not theirs and ours in needed), None)
        if nameless is not None:
            raise ValueError(f"columns: '{nameless}' is needed; only {_optional()} may be left out by \"\"")
        return self

    def column(self, ours: str) -> str:
        """What the file calls one of our columns."""
        return self.columns.get(ours, ours)


def _optional() -> str:
    return ", ".join(dict.fromkeys(name for names in OPTIONAL.values() for name in names))
