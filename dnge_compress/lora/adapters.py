"""A matrix that an adapter can be put on, and the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dnge_compress.core.errors import PlanError

if TYPE_CHECKING:
    pass

SiteKind = Literal["module", "parameter"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A matrix that an adapter can be put on.

    `path` is the module's, or, for kind "parameter", the parameter's own (experts that share one tensor: `copies` of
    them, with an adapter each). `is_transposed` marks weights stored `[inputs, outputs]` (GPT-2's Conv1D).
    """

    path: str
    kind: SiteKind
    inputs: int
    outputs: int
    copies: int = 1
    is_transposed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("module", "parameter"):
            raise PlanError(f"'{self.path}' is of kind {self.kind!r}; an adapter sits on a module or a parameter")
        for what in ("inputs", "outputs", "copies"):
            if not _is_whole(getattr(self, what)) or getattr(self, what) < 1:
                raise PlanError(f"'{self.path}': {what} must be a whole number from 1, not {getattr(self, what)!r}")

    @property
    def price(self) -> int:
        """Trainable parameters per rank."""
        return self.copies * (self.inputs + self.outputs)

    @property
    def size(self) -> int:
        """The matrix's own rank at most: an adapter beyond it adds nothing."""
        return min(self.inputs, self.outputs)

    @property
    def weight(self) -> str:
        """Name of the parameter that holds the matrix."""
        return f"{self.path}.weight" if self.kind == "module" else self.path


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One line of a plan: a site, the rank it gets (0 = no adapter), the placer's score and why.

    Scores are relative ranks; only their ratios mean something.
    """

    site: Site
    rank: int
    score: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if not _is_whole(self.rank) or not 0 <= self.rank <= self.site.size:
            raise PlanError(
                f"'{self.site.path}' can have a rank from 0 to {self.site.size} (the matrix's own), not {self.rank!r}"
            )

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return self.rank * self.site.price

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        site = self.site
        row: dict[str, Any] = {"path": site.path, "kind": site.kind, "inputs": site.inputs, "outputs": site.outputs}
        row |= {"copies": site.copies} if site.copies > 1 else {}
        row |= {"is_transposed": True} if site.is_transposed else {}
        return row | {"rank": self.rank, "params": self.params, "score": self.score, "reason": self.reason}

    @classmethod
    def from_dict(cls, row: Any) -> Adapter:
        """Inverse of `to_dict`; `params` may be missing or stale, as it follows from the rank. Raises PlanError."""
        if not isinstance(row, Mapping):
            raise PlanError(f"an adapter of the plan must be a mapping, not {row!r}")
        of_site = set(Site.__dataclass_fields__)
        known = of_site | {"rank", "params", "score", "reason"}
        for key in row:
            if key not in known:
                raise PlanError(f"unknown key '{key}' in the adapter '{row.get('path')}' of the plan")
        for key in ("path", "kind", "inputs", "outputs", "rank"):
            if key not in row:
                raise PlanError(f"an adapter of the plan lacks '{key}': {dict(row)}")
        site = Site(**{k: v for k, v in row.items() if k in of_site})
        return cls(site=site, rank=row["rank"], score=float(row.get("score", 0.0)), reason=str(row.get("reason", "")))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
