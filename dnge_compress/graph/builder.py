"""Build a ModelGraph: the small vocabulary in which a family file describes an architecture.

`build_graph(model)` finds the family; a family calls the builder's words (space, linear, norm, attention, …) in the
order of inference. Only names and shapes are used, never values, so a graph costs nothing and works on the meta
device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from torch import nn

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph.types import ConfigField, Kind, ModelGraph, Op, Shapes, Slot, Space, Step


class OtherArchitecture(UnsupportedModelError):
    """A model of a family's type that is built in another way than the family reads; it is derived from its config."""


class GraphBuilder:
    """Collects spaces, slots and steps in forward order; `finish` checks them against the shapes."""

    def __init__(self, family: str, shapes: Shapes) -> None:
        self.family = family
        self.shapes = dict(shapes)
        self._spaces: list[Space] = []
        self._slots: list[Slot] = []
        self._steps: list[Step] = []
        self._fields: list[ConfigField] = []
        self._attributes: list[tuple[str, str, str, int]] = []
        self._equal: list[tuple[str, ...]] = []

    def space(self, name: str, units: int, kind: Kind, layer: int | None = None) -> str:
        """Add a space and return its name."""
        self._spaces.append(Space(name=name, units=units, kind=kind, layer=layer))
        return name

    def layers(self, name: str, modules: Iterable[str], protected: Iterable[int] = ()) -> str:
        """Add the space of droppable blocks, given by module path; `protected` ones can't go."""
        paths = tuple(modules)
        self._spaces.append(
            Space(name=name, units=len(paths), kind="layer", layer=None, modules=paths, protected=tuple(protected))
        )
        return name

    def config_field(self, key: str, *spaces: str, **rules: Any) -> None:
        """Declare that config `key` counts the kept units of `spaces` (see ConfigField for the rules)."""
        self._fields.append(ConfigField(key=key, spaces=spaces, **rules))

    def attribute(self, space: str, module: str, name: str, factor: int = 1) -> None:
        """Declare that `module.name` holds `factor` × the kept units of `space`."""
        self._attributes.append((space, module, name, factor))

    def equal(self, *spaces: str) -> None:
        """Declare that spaces must keep equally many units, whatever the config can say."""
        if len(spaces) > 1:
            self._equal.append(spaces)

    def slot(self, param: str, axis: int, space: str, width: int = 1, offset: int = 0) -> None:
        """Tie `param` along `axis` to `space`, if the parameter exists (biases may not)."""
        if param in self.shapes:
            self._slots.append(Slot(param=param, axis=axis, space=space, width=width, offset=offset))

    def step(self, op: Op, reads: Iterable[str], writes: Iterable[str], params: Iterable[str], **detail: Any) -> None:
        """Add one moment of inference; `activation` and `is_behind` as in Step."""
        present = tuple(p for p in params if p in self.shapes)
        self._steps.append(
            Step(index=len(self._steps), op=op, reads=tuple(reads), writes=tuple(writes), params=present, **detail)
        )

    def embed(self, module: str, rows: str | None, dst: str) -> None:
        """An embedding table `[rows, dst]`; rows are never cut."""
        weight = f"{module}.weight"
        if weight in self.shapes:
            if rows is not None:
                self.slot(weight, 0, rows)
            self.slot(weight, 1, dst)
            self.step("embed", (), (dst,), (weight,))

    def norm(self, module: str, space: str, op: Op = "norm", is_behind: bool = False) -> None:
        """A norm with per-unit gain and shift; for batch norm also its running statistics."""
        names = ["weight", "bias"] + (["running_mean", "running_var"] if op == "batchnorm" else [])
        params = [f"{module}.{n}" for n in names]
        for param in params:
            self.slot(param, 0, space)
        self.step(op, (space,), (space,), params, is_behind=is_behind)

    def linear(self, module: str, src: str, dst: str, op: Op = "linear", **detail: Any) -> None:
        """A linear or conv layer from `src` to `dst`; `width_in`/`width_out` values per unit; `activation` after it."""
        weight, bias = f"{module}.weight", f"{module}.bias"
        out_axis = 1 if op.endswith("_t") else 0
        self.slot(weight, out_axis, dst, detail.get("width_out", 1))
        self.slot(weight, 1 - out_axis, src, detail.get("width_in", 1))
        self.slot(bias, 0, dst, detail.get("width_out", 1))
        self.step(op, (src,), (dst,), (weight, bias), activation=detail.get("activation", ""))

    def gated(self, gate: str, up: str, src: str, dst: str, activation: str) -> None:
        """The two input matrices of a gated feed-forward layer: dst = activation(gate x) * (up x)."""
        params = []
        for module in (gate, up):
            self.slot(f"{module}.weight", 0, dst)
            self.slot(f"{module}.weight", 1, src)
            self.slot(f"{module}.bias", 0, dst)
            params += [f"{module}.weight", f"{module}.bias"]
        self.step("gated", (src,), (dst,), params, activation=activation)

    def attention(
        self, qkv: tuple[str, str, str], residual: str, layer: int, heads: tuple[int, int], head_dim: int
    ) -> tuple[str, int]:
        """Query, key and value matrices of one block; returns the head space and its width for the output matrix.

        A unit is a key/value head with all its query heads. With one key/value head (multi-query attention) a unit
        is a query head, and the shared key and value stay out of the space.
        """
        n_q, n_kv = heads
        groups = n_q // n_kv
        shared_kv = n_kv == 1 and n_q > 1
        space = self.space(f"heads.{layer}", n_q if shared_kv else n_kv, "head", layer)
        kv_space = self.space(f"kv.{layer}", 1, "fixed", layer) if shared_kv else space
        q_width = head_dim if shared_kv else groups * head_dim
        fused = qkv[0] == qkv[1]
        offsets = (0, n_q * head_dim, (n_q + n_kv) * head_dim) if fused else (0, 0, 0)
        params: list[str] = []
        for role, (module, offset) in enumerate(zip(qkv, offsets, strict=True)):
            weight, bias = f"{module}.weight", f"{module}.bias"
            target, width = (space, q_width) if role == 0 else (kv_space, head_dim)
            out_axis = 1 if fused else 0
            self.slot(weight, out_axis, target, width, offset)
            self.slot(bias, 0, target, width, offset)
            if weight not in params:
                self.slot(weight, 1 - out_axis, residual)
                params += [weight, bias]
        writes = (space,) if kv_space == space else (space, kv_space)
        self.step("attention_t" if fused else "attention", (residual,), writes, params)
        return space, q_width

    def finish(self) -> ModelGraph:
        """The finished graph. Raises UnsupportedModelError where slots and shapes disagree."""
        graph = ModelGraph(
            family=self.family,
            spaces=tuple(self._spaces),
            slots=tuple(self._slots),
            steps=tuple(self._steps),
            config_fields=tuple(self._fields),
            attributes=tuple(self._attributes),
            equal=tuple(self._equal),
            fingerprint=fingerprint(self.family, self.shapes),
        )
        covered: dict[tuple[str, int], int] = {}
        for slot in graph.slots:
            key = (slot.param, slot.axis)
            covered[key] = covered.get(key, 0) + graph.space(slot.space).units * slot.width
        for (param, axis), rows in covered.items():
            have = self.shapes[param][axis]
            if rows != have:
                raise UnsupportedModelError(
                    f"'{param}' has {have} rows on axis {axis}, but family '{self.family}' expects {rows}; "
                    "the config and the weights don't belong together"
                )
        return graph


def fingerprint(family: str, shapes: Shapes) -> str:
    """Sixteen hex digits over the family and all tensor names and shapes."""
    text = family + "".join(f"|{k}:{tuple(v)}" for k, v in sorted(shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prefix_of(shapes: Shapes, marker: str) -> str:
    """What stands before `marker` in the first parameter name that contains it ("" for a bare base model)."""
    for name in shapes:
        head, found, _ = name.partition(marker)
        if found and (not head or head.endswith(".")):
            return head
    raise UnsupportedModelError(f"no parameter is named '…{marker}…', so the blocks can't be found")


def shapes_of(model: nn.Module) -> Shapes:
    """Names and shapes of every parameter and buffer that a checkpoint holds."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}
