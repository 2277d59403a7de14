"""A matrix that an adapter can be put on, and the adapter."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from dnge_compress.core.errors import PlanError

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
        for what in ("inputs", "outputs", "copies"):
            if getattr(self, what) < 1:
                raise PlanError(f"'{self.path}': {what} must be at least 1, not {getattr(self, what)}")

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
        if not 0 <= self.rank <= self.site.size:
            raise PlanError(
                f"'{self.site.path}' can have a rank from 0 to {self.site.size} (the matrix's own), not {self.rank}"
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

    @staticmethod
    def nested(row: Any) -> Any:
        """What `to_dict` gives with the site's values in one of their own, as the fields have them; `params` follow
        from the rank and are left out."""
        if not isinstance(row, dict):
            return row
        own = {f.name for f in fields(Site)}
        rest = {key: value for key, value in row.items() if key not in own and key != "params"}
        return {"site": {key: value for key, value in row.items() if key in own}, **rest}
