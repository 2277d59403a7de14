"""Where LoRA adapters go and how large each is: a value that can be printed, diffed, edited and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from dnge_compress.core.document import Document, Notes, Section
from dnge_compress.core.errors import PlanError
from dnge_compress.core.terminal import Printable
from dnge_compress.core.wrappers import unwrapped
from dnge_compress.lora.adapters import Adapter
from dnge_compress.lora.rank_grid import Rank, ranks_section
from dnge_compress.lora.sites import lora_fingerprint
from dnge_compress.plans.plan_json import PlanFormat, Values, file_text, plan_text, read_plan
from dnge_compress.recipes.library import validate
from dnge_compress.recipes.lora_schema import LoraRecipe

if TYPE_CHECKING:
    from peft import LoraConfig

ExportForm = Literal["peft", "axolotl", "flat_config"]


@dataclass(frozen=True, kw_only=True)
class LoraPlan(Printable):
    """Adapters for one base model. Round-trips through JSON, one line per adapter.

    `adapters` lists every matrix that was looked at, in the model's order; rank 0 means none there. `base`
    fingerprints the model's names and shapes, `budget` is the number of parameters that may be trained, `recipe` the
    resolved recipe, from which scale, alpha rule, dropout and initial values are taken.
    """

    adapters: tuple[Adapter, ...]
    base: str
    budget: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    FORMAT = PlanFormat(key="dnge_lora_plan", version=1, command="dnge place")

    def __post_init__(self) -> None:
        paths = [a.site.path for a in self.adapters]
        if len(set(paths)) != len(paths):
            raise PlanError("a plan holds at most one adapter per matrix")
        if not self.placed:
            raise PlanError("the plan places no adapter: every rank is 0")

    @property
    def placed(self) -> tuple[Adapter, ...]:
        """The adapters with a rank above 0."""
        return tuple(a for a in self.adapters if a.rank > 0)

    @property
    def params(self) -> int:
        """Parameters that will be trained."""
        return sum(a.params for a in self.adapters)

    @property
    def max_rank(self) -> int:
        """The largest rank."""
        return max(a.rank for a in self.adapters)

    def document(self) -> Document:
        """Where adapters go, with their ranks and trainable parameters, a line per type of module."""
        ranks = ranks_section([Rank(a.site.path, a.rank, a.params) for a in self.adapters])
        notes = Section("Notes", (Notes(self.notes, "the plan"),)) if self.notes else None
        return Document(
            title=f"{self.params:,} trainable parameters",
            facts=(f"of at most {self.budget:,}",),
            sections=tuple(section for section in (ranks, notes) if section is not None),
        )

    def lora_config(self, task_type: str | None = None) -> LoraConfig:
        """A plain `peft.LoraConfig`; `task_type` as peft wants it ("CAUSAL_LM", "SEQ_CLS", …).

        For a classification task peft trains the whole head as well, which no budget of adapters counts.

            model = get_peft_model(model, plan.lora_config("CAUSAL_LM"))
        """
        from dnge_compress.lora.peft_config import config_of  # here, since peft takes seconds to import

        recipe = validate({"recipe": "lora", "lora": self.recipe.get("lora", {})}, "the plan's recipe", kind=LoraRecipe)
        return config_of(self.adapters, recipe.lora, task_type)

    def verify(self, model: nn.Module) -> int:
        """Prove that peft makes of this plan what it says; the number of trainable parameters. The model is only read.

        Every target, rank and scale is resolved with peft's own matcher, before and after a save/load round trip and
        in a wrapped copy without values. Raises PlanError naming the first difference.
        """
        from dnge_compress.lora.verify import verify

        model = unwrapped(model)
        if self.base != lora_fingerprint(model):
            raise PlanError(
                f"the plan was made for another model (fingerprint {self.base}, this {type(model).__name__} has "
                f"{lora_fingerprint(model)}); place adapters for this one"
            )
        return verify(self.adapters, self.lora_config(), model)

    def export(self, form: ExportForm = "peft") -> str:
        """The plan as text for other programs.

        "peft": adapter_config.json. "axolotl": a YAML fragment. "flat_config": the adapter_config.json of the
        zero-padded uniform adapter that `flatten_adapter` makes. Raises UnknownNameError.
        """
        from dnge_compress.lora.export import export

        return export(self.lora_config(), form)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {
            self.FORMAT.key: self.FORMAT.version,
            "base": self.base,
            "budget": self.budget,
            "params": self.params,
            "recipe": dict(self.recipe),
            "notes": list(self.notes),
            "adapters": [a.to_dict() for a in self.adapters],
        }

    def to_json(self) -> str:
        """JSON text, one line per adapter, made to be read, diffed and edited."""
        return plan_text(self.to_dict(), "adapters")

    @classmethod
    def from_json(cls, text: str, origin: str = "the plan") -> LoraPlan:
        """Read a plan, which errors call `origin`. Raises PlanError naming what is missing or malformed."""

        def arranged(raw: Values) -> Values:
            raw.pop("params", None)  # they follow from the ranks
            rows = raw.get("adapters")
            return raw | {"adapters": [Adapter.nested(row) for row in rows]} if isinstance(rows, list) else raw

        return read_plan(cls, text, origin, cls.FORMAT, arranged)

    @classmethod
    def read(cls, file: Path) -> LoraPlan:
        """Read the plan in a file. Raises PlanError naming it."""
        return cls.from_json(file_text(file), f"'{file}'")
