"""The values that travel along the line: graph, scores and cuts. No tensors of the model, and no behaviour beyond
checking themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from dnge_compress.core.errors import PlanError, UnknownNameError, UnsupportedModelError

Kind = Literal["neuron", "head", "channel", "residual", "expert", "layer", "vocabulary", "fixed"]
Op = Literal[
    "embed",
    "linear",
    "linear_t",
    "gated",
    "attention",
    "attention_t",
    "conv",
    "conv_t",
    "norm",
    "batchnorm",
    "experts",
    "experts_t",
    "experts_flat",
    "router",
]

Shapes = Mapping[str, tuple[int, ...]]

ALIGNED = 8  # widths of experts in one tensor are multiples of it: fast kernels want rows of 16 bytes
PRUNABLE: tuple[Kind, ...] = ("neuron", "head", "channel", "layer", "expert")


@dataclass(frozen=True, kw_only=True)
class Space:
    """One axis of the network, shared by several tensors; a unit is the smallest thing that can go.

    `layer` is the block the space belongs to. A space of kind "layer" lists the module path of each block in
    `modules`, and one of experts that are modules of their own those; dropping a unit removes its module. Units in
    `protected` can't go.
    """

    name: str
    units: int
    kind: Kind
    layer: int | None = None
    modules: tuple[str, ...] = ()
    protected: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.units < 1:
            raise UnsupportedModelError(
                f"space '{self.name}' has {self.units} units; a family's spaces have at least one"
            )
        is_layer, may_have = self.kind == "layer", self.kind in ("layer", "expert")
        if (self.modules and not may_have) or len(self.modules) != (self.units if is_layer or self.modules else 0):
            raise UnsupportedModelError(
                f"space '{self.name}': a layer space names one module per unit, one of experts may, others name none"
            )


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Rows `offset + u * width … offset + (u + 1) * width` of `param` along `axis` belong to unit u of `space`.

    Where a parameter stacks the matrices of several experts on its first axis, `part` is the expert's place there.
    """

    param: str
    axis: int
    space: str
    width: int = 1
    offset: int = 0
    part: int | None = None

    def rows(self, units: Tensor) -> Tensor:
        """The rows that belong to `units`, in order."""
        return (self.offset + units[:, None] * self.width + torch.arange(self.width)).flatten()


def is_weight(param: str) -> bool:
    """Whether a parameter's name says that it is a matrix or a gain: "weight", or "weight_ih_l0" of an LSTM."""
    return param.rpartition(".")[2].startswith("weight")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One moment of inference: the snapshot of the dynamic graph in which `writes` is computed from `reads`.

    Weights are stored `[dst, src, …]`, except for ops ending in `_t` (GPT-2's Conv1D, transposed convs), stored
    `[src, dst, …]`. A batch
    norm `is_behind` if it reads exactly what the step before computed, with nothing in between. The ops "experts" and
    "experts_t" have the weights of all experts in one tensor, `[expert, dst, src]` and `[expert, src, dst]`, and
    "experts_flat" in one matrix, below each other; a "router" writes one logit for each.
    """

    index: int
    op: Op
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    params: tuple[str, ...]
    activation: str = ""
    is_behind: bool = False

    @property
    def in_axis(self) -> int:
        """Axis of the step's weights that runs over the source units."""
        return (0 if self.op.endswith("_t") else 1) + self.op.startswith("experts")


@dataclass(frozen=True, kw_only=True)
class ConfigField:
    """A key of the Hugging Face config that counts units: value = `factor` × kept units of each of `spaces`.

    Keys of nested configs are dotted ("text_config.intermediate_size"). Plain transformers can reload a plan only if
    all spaces of a field keep equally many units and, where `divides` is set, only if the value divides it. Several
    fields may set the same key (and `index`, for a list), then their values must agree. `forbids` is one value that
    means another architecture; `legal`, if set, are the only values. `fixed` names the reason why the field can't
    change at all. Counts are multiples of `multiple`, at least `least`; kept units are multiples of `step`. `is_ratio`
    says that the value is written as a float, `is_even` that modules read it when they are called, so that it must hold
    for uneven plans as well. `also` are further keys to write when this one changes; `lists` are
    keys of lists with one entry per unit, which lose those of the units that go, and `index_lists` of lists that name
    units, which move up.
    """

    key: str
    spaces: tuple[str, ...]
    factor: int | Fraction = 1
    index: int | None = None
    divides: int | None = None
    forbids: int | None = None
    fixed: str = ""
    also: tuple[tuple[str, Any], ...] = ()
    lists: tuple[str, ...] = ()
    index_lists: tuple[str, ...] = ()
    legal: tuple[float, ...] = ()
    multiple: int = 1
    least: int = 1
    step: int = 1
    is_even: bool = False
    is_ratio: bool = False

    def value(self, kept: int) -> float:
        """What the config says when every space keeps so many units."""
        value = self.factor * kept
        if not self.is_ratio:
            return int(value) if Fraction(value).denominator == 1 else float(value)
        ratio, width = float(value), float(1 / self.factor)
        # Models take int(width × ratio): where rounding loses a unit, the next larger float is meant.
        return ratio if int(width * ratio) >= kept else math.nextafter(ratio, math.inf)

    def allows(self, value: float) -> bool:
        """Whether plain transformers takes the value and rebuilds the network that was cut."""
        return (
            value != self.forbids
            and (self.divides is None or self.divides % value == 0)
            and (not self.legal or value in self.legal)
            and (self.is_ratio or self._is_count(value))
        )

    def _is_count(self, value: float) -> bool:
        return isinstance(value, int) and value % self.multiple == 0 and value >= self.least


@dataclass(frozen=True, kw_only=True)
class ModelGraph:
    """A network as a dynamic graph: spaces, the slots that tie tensors to them, and the steps of inference.

    `attributes` names, per space, module attributes that count it: (space, module, attribute, change per unit).
    `reasons` say why kinds of units that the architecture has can't be cut, `notes` what else a user should know. The
    spaces in each of `equal` keep equally many units, as one module counts them all.
    """

    family: str
    spaces: tuple[Space, ...]
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    config_fields: tuple[ConfigField, ...] = ()
    attributes: tuple[tuple[str, str, str, int | Fraction], ...] = ()
    fingerprint: str = ""
    reasons: tuple[tuple[Kind, str], ...] = ()
    notes: tuple[str, ...] = ()
    equal: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        names = {s.name for s in self.spaces}
        if len(names) != len(self.spaces):
            raise UnsupportedModelError("two spaces have the same name; correct the model's family")
        unknown = {s.space for s in self.slots} - names
        if unknown:
            raise UnsupportedModelError(f"slots name unknown spaces {sorted(unknown)}; correct the model's family")

    def space(self, name: str) -> Space:
        """The space called `name`. Raises UnknownNameError."""
        if name not in self._by_name:
            raise UnknownNameError("space", name, self._by_name)
        return self._by_name[name]

    def of_kind(self, *kinds: str) -> tuple[Space, ...]:
        """All spaces of the given kinds, in forward order."""
        return tuple(s for s in self.spaces if s.kind in kinds)

    def slots_of(self, space: str) -> tuple[Slot, ...]:
        """Every slot of a space, producers and consumers."""
        return self._slots_of[space]

    def step_of(self, param: str) -> Step:
        """The step that uses `param`."""
        return self._step_of[param]

    def consumes(self, slot: Slot) -> bool:
        """Whether the slot is on the reading side: the columns that a unit's activation is multiplied with."""
        step = self.step_of(slot.param)
        return (
            step.op not in ("norm", "batchnorm", "embed", "router", "experts_flat")
            and not slot.param.endswith("bias")
            and slot.axis == step.in_axis
        )

    def spaces_within(self, *prefixes: str) -> tuple[str, ...]:
        """The spaces that only parameters with these name prefixes belong to: those that go with a block."""
        return tuple(
            s.name
            for s in self.spaces
            if self.consumers(s.name) and all(slot.param.startswith(prefixes) for slot in self.slots_of(s.name))
        )

    def consumers(self, space: str) -> tuple[Slot, ...]:
        """The slots through which the rest of the network reads the space."""
        return tuple(s for s in self.slots_of(space) if self.consumes(s))

    @cached_property
    def stacks(self) -> dict[tuple[str, int], tuple[str, ...]]:
        """Tensors that hold the matrices of several experts, with the axis of their units: the experts' spaces."""
        found: dict[tuple[str, int], dict[str, None]] = {}
        for slot in self.slots:
            if slot.part is not None:
                found.setdefault((slot.param, slot.axis), {})[slot.space] = None
        return {key: tuple(spaces) for key, spaces in found.items()}

    @cached_property
    def _by_name(self) -> dict[str, Space]:
        return {s.name: s for s in self.spaces}

    @cached_property
    def _slots_of(self) -> dict[str, tuple[Slot, ...]]:
        found: dict[str, list[Slot]] = {name: [] for name in self._by_name}
        for slot in self.slots:
            found[slot.space].append(slot)
        return {name: tuple(slots) for name, slots in found.items()}

    @cached_property
    def _step_of(self) -> dict[str, Step]:
        return {param: step for step in self.steps for param in step.params}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Predicted cost of removal, in nats of loss per unit after repair; larger = keep; comparable across spaces.

    `units` holds float32 `[units]` per prunable space (the layer spaces included), `matrices` one number per
    weight matrix. Baselines whose scale has no meaning in nats (magnitude, random) keep their own scale.
    `notes` are for the report; `uncorrected` are the OBS costs where a scorer corrects them.
    """

    units: Mapping[str, Tensor]
    scorer: str
    fingerprint: str
    matrices: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    uncorrected: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.units.items():
            if not torch.isfinite(values).all():
                raise PlanError(
                    f"scorer '{self.scorer}' gave a score that is not finite in space '{name}'; use another scorer"
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {
            "scorer": self.scorer,
            "fingerprint": self.fingerprint,
            "units": {k: [float(x) for x in v] for k, v in self.units.items()},
            "matrices": {k: float(v) for k, v in self.matrices.items()},
        }


@dataclass(frozen=True)
class Cut:
    """The only pruning instruction: the units of `space` that stay, sorted. A dropped layer is a Cut on its space."""

    space: str
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.keep:
            raise PlanError(f"the cut on '{self.space}' keeps no unit")
        if list(self.keep) != sorted(set(self.keep)) or self.keep[0] < 0:
            raise PlanError(f"the cut on '{self.space}' must list kept units once each, ascending, from 0")

    def gone(self, units: int) -> Tensor:
        """The units that don't stay, of a space of so many, ascending."""
        gone = torch.ones(units, dtype=torch.bool)
        gone[list(self.keep)] = False
        return gone.nonzero().squeeze(1)
