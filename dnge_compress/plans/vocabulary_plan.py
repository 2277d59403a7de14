"""Which tokens of a vocabulary stay, as a value: printed, edited, compared, replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnge_compress.core.document import Cell, Column, Document, Notes, Section, Table
from dnge_compress.core.errors import PlanError
from dnge_compress.core.strict_json import json_values, read_strictly
from dnge_compress.core.terminal import Printable
from dnge_compress.core.wording import count, percent
from dnge_compress.plans.plan_json import PLANS, PlanFormat, Values, file_text, plan_in, plan_text, read_plan
from dnge_compress.plans.prune_plan import PrunePlan


@dataclass(frozen=True, kw_only=True)
class VocabularyPlan(Printable):
    """The tokens that stay, of a model with so many `rows`. Round-trips through JSON, a token a line.

    `keep` are ids of the base, ascending: a token's new id is its place among them; `tokens` are their texts ("" for a
    row that the tokenizer has no token for). `base` fingerprints the base's tokenizer, so that the plan fits every
    model that reads with it, pruned or not. `reasons` count why tokens stay, `params_before` all parameters of the
    model that the plan was made for, of which `params_per_token` go with each token.
    """

    keep: tuple[int, ...]
    tokens: tuple[str, ...]
    rows: int
    base: str
    params_before: int = 0
    params_per_token: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    FORMAT = PlanFormat(key="dnge_vocabulary", version=1, command="dnge vocabulary")

    def __post_init__(self) -> None:
        if not self.keep or list(self.keep) != sorted(set(self.keep)) or self.keep[0] < 0 or self.keep[-1] >= self.rows:
            raise PlanError(f"a plan lists the ids that stay once each, ascending, from 0 to {self.rows - 1:,}")
        if len(self.keep) != len(self.tokens):
            raise PlanError("a plan names every token that stays")

    @property
    def params_after(self) -> int:
        """Parameters of the model that the plan was made for, without the tokens that go."""
        return self.params_before - self.params_per_token * (self.rows - len(self.keep))

    @property
    def is_edited(self) -> bool:
        """Whether tokens were added or taken out since the plan was made."""
        return sum(self.reasons.values()) != len(self.keep)

    def after(self, earlier: VocabularyPlan | None) -> VocabularyPlan:
        """One plan for two cuts, of which this is the second."""
        if earlier is None:
            return self
        return VocabularyPlan(
            keep=tuple(earlier.keep[i] for i in self.keep),
            tokens=self.tokens,
            rows=earlier.rows,
            base=earlier.base,
            params_before=earlier.params_before,
            params_per_token=earlier.params_per_token,
            reasons=self.reasons,
            notes=self.notes,
        )

    def document(self) -> Document:
        """How many tokens stay, and why."""
        why = tuple((Cell(text=reason), Cell(text=f"{n:,}")) for reason, n in self.reasons.items() if n)
        went = (Cell(text="go"), Cell(text=f"{self.rows - len(self.keep):,}", style="strong"))
        columns = (Column(title="tokens", kind="text"), Column())
        table = Section("Tokens", (Table(columns=columns, rows=(*(() if self.is_edited else why), went)),))
        notes = Section("Notes", (Notes(self.notes, "the plan"),))
        sizes = (f"{count(self.params_before)} → {count(self.params_after)} parameters",) if self.params_before else ()
        saved = (f"{percent(1 - self.params_after / self.params_before)} saved",) if self.params_before else ()
        return Document(
            title=f"{self.rows:,} → {len(self.keep):,} tokens",
            facts=(*sizes, *saved, *(("edited",) if self.is_edited else ())),
            sections=(table, *((notes,) if self.notes else ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        values = json_values(self)
        values.pop("tokens")
        kept = {str(i): token for i, token in zip(self.keep, self.tokens, strict=True)}
        return {self.FORMAT.key: self.FORMAT.version, **values, "keep": kept}

    def to_json(self) -> str:
        """JSON text, one line per token, made to be read, diffed and edited."""
        return plan_text(self.to_dict(), "keep")

    @classmethod
    def from_json(cls, text: str, origin: str = "the plan") -> VocabularyPlan:
        """Read a plan, which errors call `origin`. Raises PlanError naming what is missing or malformed."""

        def arranged(raw: Values) -> Values:
            kept = read_strictly(Mapping[str, str], raw.get("keep"), f"{origin}.keep")
            strange = next((i for i in kept if not i.isdecimal()), None)
            if strange is not None:
                raise PlanError(f"{origin}.keep: '{strange}' is no id of a token")
            tokens = {int(i): token for i, token in kept.items()}
            return raw | {"keep": sorted(tokens), "tokens": [tokens[i] for i in sorted(tokens)]}

        return read_plan(cls, text, origin, cls.FORMAT, arranged)

    @classmethod
    def read(cls, file: Path) -> VocabularyPlan:
        """Read the plan in a file. Raises PlanError naming it."""
        return cls.from_json(file_text(file), f"'{file}'")


def read_plan_of_cuts(file: Path) -> PrunePlan | VocabularyPlan:
    """The plan in a file, which is read once, of what to prune or of which tokens stay. Raises PlanError naming it."""
    text = file_text(file)
    is_about_tokens = plan_in(text) == PLANS[VocabularyPlan.FORMAT.key]
    return (VocabularyPlan if is_about_tokens else PrunePlan).from_json(text, f"'{file}'")


def refuse_beside_tokens(*names: str) -> None:
    """Raise PlanError for arguments that don't go with a plan of tokens."""
    if names:
        raise PlanError(f"a plan of which tokens stay needs no {', '.join(names)}; leave that out")


def tokens_fingerprint(ids: Mapping[str, int]) -> str:
    """16 hexadecimal digits that tell a tokenizer's tokens and their ids from others."""
    sha = hashlib.sha256()
    for token, i in sorted(ids.items(), key=lambda item: (item[1], item[0])):
        sha.update(f"{i}\0{token}\0".encode("utf-8", "surrogatepass"))
    return sha.hexdigest()[:16]
