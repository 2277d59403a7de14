"""What a recipe may say about LoRA. Names are peft's `LoraConfig`'s where there is one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from dnge_compress.recipes.schema import Calibration, Real, RecipeSection, Whole, as_tuple

Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


def matches(path: str, name: str) -> bool:
    """Whether a name in `target_modules` or `exclude_modules` means the module or parameter at a path, as in peft: by
    all of it, or by its end."""
    stem = path.removesuffix(".weight")  # a layer that is only reached as a parameter keeps its layer's name
    return any(p == name or p.endswith(f".{name}") for p in (path, stem))


class LoraBudget(RecipeSection):
    """How much may be trained: exactly one of the three.

    `match_uniform_r`: as many parameters as rank r on every target has. `trainable_params`: a count.
    `trainable_fraction`: a share of the model's parameters, 0 < fraction <= 1.
    """

    RIVALS: ClassVar[tuple[str, ...]] = ("match_uniform_r", "trainable_params", "trainable_fraction")

    match_uniform_r: Whole | None = Field(default=None, ge=1)
    trainable_params: Whole | None = Field(default=None, ge=1)
    trainable_fraction: Real | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> LoraBudget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"should name exactly one of {known}, not {' and '.join(given) or 'none'}")
        return self


class Lora(RecipeSection):
    """Where LoRA goes and with what rank.

    `placer` decides; see lora/placers/. `target_modules` and `exclude_modules` follow peft: "all-linear", or names that
    match as suffixes. Ranks are multiples of `rank_multiple` in [`min_rank`, `max_rank`], or 0, which means no adapter;
    a matrix never gets a rank above its own. `alpha_rule` "constant_scale" gives every adapter alpha =
    `lora_scale` × its rank; "constant_alpha" gives all of them `lora_scale` × the largest rank.
    """

    budget: LoraBudget = LoraBudget(match_uniform_r=16)
    placer: str = Field(default="uniform", min_length=1)
    target_modules: Literal["all-linear"] | Names = "all-linear"
    exclude_modules: Names = ()
    min_rank: Whole = Field(default=1, ge=1)
    max_rank: Whole = Field(default=64, ge=1)
    rank_multiple: Whole = Field(default=1, ge=1)
    alpha_rule: Literal["constant_scale", "constant_alpha"] = "constant_scale"
    lora_scale: Real = Field(default=2.0, gt=0)
    lora_dropout: Real = Field(default=0.0, ge=0, lt=1)
    init_lora_weights: bool | Literal["gaussian", "olora", "pissa", "orthogonal"] = True

    @model_validator(mode="after")
    def _ranks_fit(self) -> Lora:
        if self.max_rank < self.min_rank:
            raise ValueError(f"max_rank ({self.max_rank}) should be at least min_rank ({self.min_rank})")
        if self.max_rank < self.rank_multiple:
            raise ValueError(f"max_rank ({self.max_rank}) should be at least rank_multiple ({self.rank_multiple})")
        return self


class LoraRecipe(RecipeSection):
    """Everything that decides a placement except the model and the data.

    What is left out keeps its default.

        LoraRecipe(lora=Lora(budget=LoraBudget(trainable_params=4_000_000)))
    """

    recipe: Literal["lora"] = "lora"
    name: str = ""
    about: str = ""
    calibration: Calibration = Calibration()
    lora: Lora = Lora()
