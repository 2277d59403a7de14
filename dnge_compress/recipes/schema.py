"""What a recipe may say about pruning. Every default of the package that a recipe can set lives in the schemas.

Models are frozen and refuse unknown keys at every depth. Leaf names are unique over the whole recipe, so a keyword
such as `ratio=0.3` needs no section.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_serializer, model_validator

SIZE = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<prefix>[kmgbt]?)(?P<binary>i?)b?", re.IGNORECASE)
PREFIXES = {"": 1.0, "i": 1.0} | {
    name + ending: base**power
    for power, names in enumerate(("k", "m", "gb", "t"), 1)
    for name in names
    for ending, base in (("", 1e3), ("i", 1024.0))
}
LEAST_TOKENS = 64  # that a model is calibrated on
CutKind = Literal["neuron", "head", "channel", "layer", "expert"]


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def as_tuple(value: Any) -> Any:
    """A list, set or comma-separated string as a tuple; anything else is left for pydantic to judge."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, (list, set, frozenset)) else value


def _one_or_several(value: Any) -> Any:
    """A text stands for a list of one: prompts may hold commas."""
    return (value,) if isinstance(value, str) else as_tuple(value)


def _as_size(value: Any) -> Any:
    """ "4.2B", "8 GB", "512MiB" or a number as a whole number; what is no text is left for pydantic to judge."""
    if isinstance(value, str):
        found = SIZE.fullmatch(value.strip().replace("_", ""))
        if found is None:
            raise ValueError("should be a number such as 800M, 4.2B or 8GB")
        value = float(found["number"]) * PREFIXES[found["prefix"].lower() + ("i" if found["binary"] else "")]
    return round(value) if isinstance(value, float) and math.isfinite(value) else value


def _as_share(value: Any) -> Any:
    """ "0.8x" or "80%" as a share; what is no text is left for pydantic to judge."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    is_percent = text.endswith("%")
    try:
        number = float(text.rstrip("x×%").strip())
    except ValueError:
        raise ValueError("should be a share such as 0.8x or 80%") from None
    return number / 100 if is_percent else number


LAST_SEED = (1 << 32) - 1  # that every random generator takes
Whole = Annotated[int, BeforeValidator(_reject_bool)]
Real = Annotated[float, BeforeValidator(_reject_bool), Field(allow_inf_nan=False)]
Size = Annotated[Whole, BeforeValidator(_as_size), Field(ge=1), WithJsonSchema({"type": ["integer", "string"]})]
Share = Annotated[Real, BeforeValidator(_as_share), Field(gt=0, lt=1), WithJsonSchema({"type": ["number", "string"]})]


class RecipeSection(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    RIVALS: ClassVar[tuple[str, ...]] = ()  # keys of which an override takes the place of the others


class Calibration(RecipeSection):
    """The synthetic inputs on which a model is calibrated where no data is given.

    `kind` "auto" picks "sampled", text from the model itself, for causal and masked language models, "words", words of
    English with a topic, for other text models, and "images", painted shapes, for vision models. `tokens` counts over
    all inputs, `length` is tokens per sequence (causal language models write texts twice as long, masked ones fill in
    texts of up to four times that); an image counts as many tokens as it has patches, and at least 64 images are used.
    Causal language models begin their texts with `prompts`, in turn, if any are given.
    """

    kind: Literal["auto", "sampled", "words", "images"] = "auto"
    tokens: Whole = Field(default=16384, ge=LEAST_TOKENS)
    length: Whole = Field(default=64, ge=2)
    seed: Whole = Field(default=0, ge=0, le=LAST_SEED)
    prompts: Annotated[tuple[str, ...], BeforeValidator(_one_or_several)] = ()

    @model_validator(mode="after")
    def _one_sequence_fits(self) -> Calibration:
        if self.length > self.tokens:
            raise ValueError(f"tokens ({self.tokens}) should be at least length ({self.length})")
        return self


class Prune(RecipeSection):
    """How much goes, and from where.

    `ratio` is the fraction removed, 0 <= ratio < 1, of the non-embedding `parameters`, of the `units` of every space
    of the chosen `kinds`, or of the `macs`. In its place one of these says what may be left, and the smallest ratio
    that gets there is looked for: `params` of the whole model ("4.2B"), `bytes` of its tensors ("8GB"), `memory`, which
    is these and the key/value cache of `cache_batch` texts of `cache_length` tokens, `active_params`, those that a
    token meets in a mixture of experts, or `latency`, the time of a forward pass as a share of the original's ("0.8x"),
    measured on this machine. `allocation` "uniform" takes the same fraction everywhere, "global"
    (needs `uneven`) lets kinds and layers compete by predicted cost, "auto" measures both where no config has to say
    the widths (`uneven`, traced modules) and is uniform elsewhere. Widths of neurons and channels are rounded to
    multiples of `round_to`, and to what another program wants by `align`: 256 for "gguf" (blocks of K-quants), 128 for
    "vllm" (Marlin kernels), N for "tensor_parallel=N". Heads keep a multiple of N as well; for the other two, as many
    as make the columns of the matrix that reads them such a multiple. Every space keeps at least the fraction
    `min_keep` of its units. `within` is the module path of a part of the model, or the end of one: only what lies
    wholly inside may go, and `ratio` counts that part alone. `protected` holds fnmatch patterns of module paths whose
    spaces stay whole. `uneven` allows widths that differ between layers, which plain transformers can't reload.
    """

    RIVALS: ClassVar[tuple[str, ...]] = ("ratio", "params", "bytes", "memory", "active_params", "latency")

    ratio: Real = Field(default=0.2, ge=0, lt=1)
    params: Size | None = None
    bytes: Size | None = None
    memory: Size | None = None
    active_params: Size | None = None
    latency: Share | None = None
    cache_length: Whole = Field(default=4096, ge=1)
    cache_batch: Whole = Field(default=1, ge=1)
    of: Literal["parameters", "units", "macs"] = "parameters"
    within: str = ""
    kinds: Annotated[tuple[CutKind, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        "neuron",
        "head",
        "channel",
        "layer",
    )
    allocation: Literal["auto", "uniform", "global"] = "auto"
    round_to: Whole = Field(default=1, ge=1)
    align: Annotated[str, Field(pattern=r"^(none|gguf|vllm|tensor_parallel=[1-9]\d*)$")] = "none"
    min_keep: Real = Field(default=0.1, ge=0, le=1)
    protected: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    uneven: bool = False

    def left(self, what: Literal["parameters", "macs"]) -> tuple[float, float]:
        """The least and the most that can be left of all parameters or multiply-accumulates, as shares (0..1).

        A weight lies in one row, one column and one layer; how many of them go with other things isn't known before.
        """
        if self.target:
            return 0.0, 1.0
        least = 1 - self.ratio if self.of == what else (1 - self.ratio) ** 3 if self.of == "units" else 0.0
        return least, 1 - self.ratio if self.of == what and not self.within else 1.0

    @property
    def target(self) -> str:
        """Which key says what may be left; "" where `ratio` says what goes."""
        return next((name for name in self.RIVALS[1:] if getattr(self, name) is not None), "")

    def at(self, ratio: float) -> Prune:
        """The same with a ratio in the place of a target."""
        return self.model_copy(update={**dict.fromkeys(self.RIVALS), "ratio": ratio})

    @model_validator(mode="before")
    @classmethod
    def _says_it_once(cls, raw: Any) -> Any:
        given = [name for name in cls.RIVALS if isinstance(raw, Mapping) and raw.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"should name one of {', '.join(cls.RIVALS)}, not {' and '.join(given)}")
        return raw

    @model_serializer(mode="wrap")
    def _what_was_said(self, values: Callable[[Prune], dict[str, Any]]) -> dict[str, Any]:
        """Without the keys that didn't decide anything."""
        silent = {name for name in self.RIVALS if name != (self.target or "ratio")}
        if self.target != "memory":
            silent |= {"cache_length", "cache_batch"}
        return {name: value for name, value in values(self).items() if name not in silent}

    @property
    def width_multiple(self) -> int:
        """What widths of neurons and channels are multiples of."""
        return math.lcm(self.round_to, self.columns_multiple, self.shards)

    @property
    def columns_multiple(self) -> int:
        """What the number of columns of every matrix that reads a cut space is a multiple of."""
        return {"gguf": 256, "vllm": 128}.get(self.align, 1)

    @property
    def shards(self) -> int:
        """Among how many devices heads are divided."""
        return int(self.align.partition("=")[2] or 1)

    @model_validator(mode="after")
    def _global_is_uneven(self) -> Prune:
        if self.allocation == "global" and not self.uneven:
            raise ValueError("allocation 'global' makes widths differ between layers; it needs uneven: true as well")
        if self.allocation == "global" and self.of == "units":
            raise ValueError(
                "of 'units' takes the same share of every space; allocation 'global' counts parameters or macs"
            )
        return self


AUTO_NUMBERS = 1 << 20  # of a matrix: a layer of larger ones takes minutes to be refitted on both sides


class Repair(RecipeSection):
    """What happens to the matrices that consume a pruned space.

    `lstsq` refits them by least squares with relative `ridge` on the activations of the calibration inputs, `joint`
    then refits the linear layers that compute the kept neurons with them, `auto` does so where these are small, `bias`
    adds the mean of what went to their bias, `none` leaves them.
    """

    compensate: Literal["none", "bias", "lstsq", "joint", "auto"] = "auto"
    ridge: Real = Field(default=0.003, gt=0)

    @property
    def is_refit(self) -> bool:
        """Whether matrices are fitted again."""
        return self.compensate in ("lstsq", "joint", "auto")

    @property
    def most_joint(self) -> float:
        """The numbers of the largest matrix that is refitted since it computes kept neurons."""
        return {"joint": math.inf, "auto": AUTO_NUMBERS}.get(self.compensate, 0)


class Recipe(RecipeSection):
    """Everything that decides a compression except the model and the data.

        Recipe(scorer="obs", prune=Prune(ratio=0.3, kinds=("neuron",)))

    `check` proves after the surgery that the pruned model equals the dense one with those units masked.
    """

    recipe: Literal["prune"] = "prune"
    name: str = ""
    about: str = ""
    scorer: str = Field(default="encoder", min_length=1)
    calibration: Calibration = Calibration()
    prune: Prune = Prune()
    repair: Repair = Repair()
    check: bool = True
