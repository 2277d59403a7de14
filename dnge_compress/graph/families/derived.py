"""Every other Hugging Face architecture: its graph is derived from the config and proved on a small random copy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph.builder import fingerprint, shapes_of
from dnge_compress.graph.derivation.architecture import MATRICES, Architecture
from dnge_compress.graph.derivation.config_keys import Key, as_dict, spelled
from dnge_compress.graph.derivation.derive import Derivation, DerivationError, ProvedAxes, ProvedBlocks, derive
from dnge_compress.graph.derivation.experts import modules_of
from dnge_compress.graph.derivation.heads import HEADS
from dnge_compress.graph.derivation.proof import Tied
from dnge_compress.graph.derivation.readings import Counted
from dnge_compress.graph.derivation.roles import with_roles
from dnge_compress.graph.layer_types import BATCH_NORMS, CONVS
from dnge_compress.graph.paths import block_of, prefixes
from dnge_compress.graph.types import ALIGNED, ConfigField, Kind, ModelGraph, Op, Slot, Space, Step

MODEL_TYPES: tuple[str, ...] = ()  # whatever no other family claims

FAMILY = "derived"
KEPT_SIZES = frozenset(  # attributes that surgery brings up to date with the weights
    {"in_features", "out_features", "in_channels", "out_channels", "groups", "num_features", "nx", "nf"}
    | {"num_embeddings", "embedding_dim"}
)
GENERIC = {"model", "transformer", "layers", "layer", "blocks", "block", "h"}  # names that tell no tower from another
WIDTHS = re.compile("intermediate|ffn|inner|d_ff|mlp|hidden_dim$")  # names of feed-forward widths


def build(model: nn.Module, architecture: Architecture | None = None) -> ModelGraph:
    """The graph of a Hugging Face model of any architecture, which `described_by` may have made already. Raises
    UnsupportedModelError with the measured reason."""
    return _Assembly(model, _derivation(model, architecture)).graph()


def described_by(model: Any) -> Architecture:
    """The architecture of a model that is the one its config describes. Raises UnsupportedModelError for another."""
    architecture = Architecture(type(model), type(model.config))
    outline = architecture.outline(as_dict(model.config))
    tensors = model.state_dict()
    for name in outline.shapes if outline else ():
        if name not in tensors:
            raise UnsupportedModelError(
                f"this {type(model).__name__} has no '{name}', but its config says so; pass the model as its class "
                "builds it"
            )
    for name, tensor in tensors.items():
        expected = outline.shapes.get(name, ()) if outline else ()
        if expected and expected != tuple(tensor.shape):
            raise UnsupportedModelError(
                f"'{name}' has shape {tuple(tensor.shape)}, but the config of this {type(model).__name__} says "
                f"{expected}; the config and the weights don't belong together"
            )
    return architecture


_known: dict[tuple[type[nn.Module], str], Derivation] = {}


def _derivation(model: Any, architecture: Architecture | None = None) -> Derivation:
    key = (type(model), json.dumps(as_dict(model.config), sort_keys=True, default=str))
    if key not in _known:
        try:
            _known[key] = derive(model, architecture)
        except DerivationError as e:
            raise UnsupportedModelError(f"{type(model).__name__} can't be read from its config: {e}") from None
    found = _known[key]
    if not found.axes and not found.stacks:
        reasons = "; ".join(f"{k}: {why}" for k, why in list(found.refused.items())[:3])
        raise UnsupportedModelError(
            f"nothing in the config of {type(model).__name__} counts units that can go"
            + (f" ({reasons})" if reasons else "")
        )
    return found


class _Assembly:
    """Spaces, slots, steps and fields, collected from a derivation for a model of these modules and shapes."""

    def __init__(self, model: Any, derivation: Derivation) -> None:
        self.derivation = derivation
        self.modules = dict(model.named_modules())
        self.shapes = shapes_of(model)
        tables = _token_tables(model)
        self.vocabulary = {f"{path}.weight" for path, module in self.modules.items() if module in tables}
        self.counted_keys = {key for axes in derivation.axes for key, _ in axes.counted.keys}
        self.counted_keys |= {proved.blocks.key for proved in derivation.stacks}
        stacks = {block_of(tied.consumers[0][0])[0] for axes in derivation.axes for tied in axes.spaces}
        self.has_one_stack = len(stacks) == 1
        self.routers: set[str] = set()
        self.spaces: dict[str, Space] = {}
        self.slots: list[Slot] = []
        self.fields: list[ConfigField] = []
        self.attributes: list[tuple[str, str, str, Any]] = []
        self.writers: dict[tuple[str, int], list[str]] = {}

    def graph(self) -> ModelGraph:
        """The finished graph."""
        for proved in self.derivation.stacks:
            self._add_stack(proved)
        for axes in self.derivation.axes:
            self._add_axes(axes)
        steps = tuple(with_roles(self._steps(), self.spaces))
        order: dict[str, int] = {name: i for i, step in enumerate(steps) for name in (*step.reads, *step.writes)}
        spaces = sorted(self.spaces.values(), key=lambda s: order.get(s.name, -1))
        return ModelGraph(
            family=FAMILY,
            spaces=tuple(spaces),
            slots=tuple(self.slots),
            steps=steps,
            config_fields=tuple(self.fields),
            attributes=tuple(self.attributes),
            fingerprint=fingerprint(FAMILY, self.shapes),
            reasons=tuple(reasons(self.derivation).items()),
        )

    def _add_stack(self, proved: ProvedBlocks) -> None:
        blocks = proved.blocks
        tower = _tower(blocks.modules[0]) if len(self.derivation.stacks) > 1 else ""
        name = f"{tower}.layers" if tower else "layers"
        if name in self.spaces:
            name = f"layers:{blocks.modules[0].rpartition('.')[0]}"
        self.spaces[name] = Space(
            name=name, units=len(blocks.modules), kind="layer", modules=blocks.modules, protected=proved.fixed
        )
        key, index = _key_of(blocks.key)
        lists, indices = (tuple(map(spelled, paths)) for paths in (blocks.lists, blocks.index_lists))
        self.fields.append(ConfigField(key=key, index=index, spaces=(name,), lists=lists, index_lists=indices))

    def _add_axes(self, proved: ProvedAxes) -> None:
        counted = proved.counted
        written = counted.explicit.items() if counted.are_heads else ()
        also = tuple((spelled(k), v) for k, v in written if k not in self.counted_keys)
        names: list[tuple[str, int]] = []  # of spaces, and how many of their units are one of the config's
        multiple = 1
        if not proved.are_experts and not all(map(self._is_readable, proved.spaces)):
            return
        if proved.are_experts:
            self.routers |= {param for tied in proved.spaces for param, _ in tied.consumers}
        for tied in proved.spaces:
            kind: Kind = "expert" if proved.are_experts else self._kind(counted.are_heads, tied)
            experts = None if proved.are_experts else self._stacked(tied)
            if experts and counted.units % ALIGNED == 0:
                multiple = ALIGNED
            for part in range(experts or 1):
                for group in range(counted.groups):
                    suffix = part if experts else group if counted.groups > 1 else None
                    name = self._name(kind, tied, suffix)
                    self._add_space(name, kind, counted, group, tied, part if experts else None)
                    names.append((name, tied.share))
        for key, factor in counted.keys:
            name, index = _key_of(key)
            for share in dict.fromkeys(s for _, s in names):
                own = tuple(n for n, s in names if s == share)
                self.fields.append(
                    ConfigField(
                        key=name,
                        index=index,
                        spaces=own,
                        factor=factor * counted.groups / share,
                        also=also,
                        is_ratio=counted.is_ratio,
                        multiple=multiple,
                        least=proved.fewest,
                        step=share if counted.is_ratio else 1,
                        is_even=counted.are_heads or proved.are_experts,
                        legal=tuple(sorted({float(factor * n) for n in proved.legal})),
                    )
                )
        near = self._by_prefix(name for name, _ in names)
        for (module, attribute), change in counted.counts.items():
            if attribute in KEPT_SIZES and isinstance(self.modules.get(module), (*MATRICES, *BATCH_NORMS)):
                continue  # surgery keeps these itself
            nearest = next((near[prefix] for prefix in prefixes(module) if prefix in near), [])
            # All near spaces keep as many. A change is counted once, or by every group of query heads of one block.
            for name in [name for name, _ in names if name in nearest][: counted.groups]:
                self.attributes.append((name, module, attribute, change / dict(names)[name]))

    def _by_prefix(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The spaces that have tensors below a module path."""
        wanted = set(names)
        found: dict[str, dict[str, None]] = {}
        for slot in self.slots:
            if slot.space in wanted:
                for prefix in prefixes(slot.param):
                    found.setdefault(prefix, {})[slot.space] = None
        return {prefix: list(own) for prefix, own in found.items()}

    def _is_readable(self, tied: Tied) -> bool:
        """Whether what reads the units is multiplied where signals can be gathered."""
        return self._stacked(tied) is not None or all(self._is_matrix(param) for param, _ in tied.consumers)

    def _is_matrix(self, param: str) -> bool:
        return isinstance(self.modules[param.rpartition(".")[0]], MATRICES)

    def _stacked(self, tied: Tied) -> int | None:
        """How many experts' matrices lie in the tensors of a space; None if they don't."""
        shapes = [self.shapes[param] for param, _ in tied.consumers]
        if any(self._is_matrix(param) or len(self.shapes[param]) != 3 for param, _ in tied.consumers):
            return None
        first = {shape[0] for shape in shapes} | {self.shapes[param][0] for param, _ in tied.rows}
        return first.pop() if len(first) == 1 and all(axis > 0 for _, axis in tied.rows) else None

    def _add_space(self, name: str, kind: Kind, counted: Counted, group: int, tied: Tied, part: int | None) -> None:
        own = counted.units * tied.share // counted.groups
        modules = modules_of(counted, tied)
        layer = next((int(p) for p in tied.consumers[0][0].split(".") if p.isdigit()), None)
        self.spaces[name] = Space(name=name, units=own, kind=kind, layer=layer, modules=modules)
        for (param, axis), runs in tied.rows.items():
            for start, n in runs:
                offset = start + group * own * n
                self.slots.append(Slot(param=param, axis=axis, space=name, width=n, offset=offset, part=part))
            self.writers.setdefault((param, axis), []).append(name)

    def _kind(self, are_heads: bool, tied: Tied) -> Kind:
        if are_heads:
            return "head"
        owner = self.modules[tied.consumers[0][0].rpartition(".")[0]]
        return "channel" if isinstance(owner, CONVS) else "neuron"

    def _name(self, kind: Kind, tied: Tied, group: int | None) -> str:
        word = {"head": "heads", "channel": "channels", "expert": "experts"}.get(kind, "ffn")
        path = tied.consumers[0][0].rpartition(".")[0]
        numbers = [p for p in path.split(".") if p.isdigit()]
        short = ".".join([word, *numbers[:1], *([str(group)] if group is not None else [])])
        tower = "" if self.has_one_stack else _tower(path)
        name = f"{tower}.{short}" if tower else short
        if name not in self.spaces and (tower or self.has_one_stack):
            return name
        return f"{word}:{path}" + (f".{group}" if group is not None else "")

    def _steps(self) -> list[Step]:
        """One step for every module with weights, in the order in which inference calls them."""
        steps: list[Step] = []
        bare: dict[str, list[tuple[str, int]]] = {}
        for param, axis in self.writers:
            bare.setdefault(param.rpartition(".")[0], []).append((param, axis))
        stacked = self._stacked_modules()
        for path in self._order():
            own = [step] if (step := self._step(path)) is not None else []
            own += self._experts(path, stacked[path]) if path in stacked else self._flat_experts(path)
            known = {param for s in own for param in s.params}
            left = [key for key in bare.get(path, ()) if key[0] not in known]
            if left:  # biases of experts, attention sinks and the like
                spaces = tuple(dict.fromkeys(name for key in left for name in self.writers[key]))
                params = tuple(dict.fromkeys(param for param, _ in left))
                own.append(Step(index=0, op="norm", reads=spaces, writes=spaces, params=params))
            steps += own
        return steps

    def _order(self) -> list[str]:
        """The model's modules by the order of their counterparts in the small copy, block by block."""
        rank = {path: i for i, path in enumerate(self.derivation.order)}
        firsts: dict[str, int] = {}
        for path, i in rank.items():
            stack, number, _ = block_of(path)
            if number is not None:
                firsts.setdefault(stack, i)
        within: dict[tuple[str, str], int] = {}
        for path, i in rank.items():
            stack, _, rest = block_of(path)
            within.setdefault((stack, rest), i)

        def key(path: str) -> tuple[int, int, int]:
            stack, number, rest = block_of(path)
            if number is None:
                return rank.get(path, len(rank)), 0, 0
            return firsts.get(stack, len(rank)), number, within.get((stack, rest), len(rank))

        own = dict.fromkeys(name.rpartition(".")[0] for name in self.shapes)
        return sorted(own, key=key)

    def _stacked_modules(self) -> dict[str, Op]:
        """Modules of experts, and how their weights are stored, as the axes that are read tell."""
        found: dict[str, Op] = {}
        for axes in self.derivation.axes:
            for tied in axes.spaces if not axes.are_experts else ():
                if self._stacked(tied):
                    param, axis = tied.consumers[0]
                    found[param.rpartition(".")[0]] = "experts" if axis == 2 else "experts_t"
        return found

    def _experts(self, path: str, op: Op) -> list[Step]:
        """One step for each of a module's stacked weights."""
        steps = []
        for name, shape in self.shapes.items():
            if name.startswith(f"{path}.") and len(shape) == 3:
                axis = 1 if op.endswith("_t") else 2
                reads, writes = self._on(name, axis), self._on(name, 3 - axis)
                steps.append(Step(index=0, op=op, reads=reads, writes=writes, params=(name,)))
        return steps

    def _flat_experts(self, path: str) -> list[Step]:
        """One step for each bare matrix that has the rows of all experts below each other."""
        slots = {s.param: s.space for s in self.slots if self.spaces[s.space].kind == "expert" and s.width > 1}
        return [
            Step(index=0, op="experts_flat", reads=(space,), writes=(space,), params=(name,))
            for name, space in slots.items()
            if name.rpartition(".")[0] == path and not self._is_matrix(name)
        ]

    def _step(self, path: str) -> Step | None:
        module = self.modules[path]
        prefix = f"{path}." if path else ""
        params = tuple(n for n in self.shapes if n.startswith(prefix) and "." not in n[len(prefix) :])
        weight = f"{prefix}weight"
        shape = self.shapes.get(weight)
        if shape is None:
            return None
        if weight in self.routers:
            return Step(index=0, op="router", reads=self._on(weight, 1), writes=self._on(weight, 0), params=params)
        if len(shape) == 1:
            op: Op = "batchnorm" if f"{prefix}running_mean" in params else "norm"
            spaces = self._on(weight, 0)
            return Step(index=0, op=op, reads=spaces, writes=spaces, params=params)
        if isinstance(module, nn.Embedding):
            self._on(weight, 0)
            return Step(index=0, op="embed", reads=(), writes=self._on(weight, 1), params=params)
        if isinstance(module, CONVS) and module.groups > 1:
            spaces = self._on(weight, 0)
            return Step(index=0, op="norm", reads=spaces, writes=spaces, params=params)
        transposed = isinstance(module, Conv1D)
        op = "linear_t" if transposed else "conv" if isinstance(module, CONVS) else "linear"
        if not isinstance(module, (nn.Linear, Conv1D, *CONVS)):
            return None
        reads = self._on(weight, 0 if transposed else 1)
        return Step(index=0, op=op, reads=reads, writes=self._on(weight, 1 if transposed else 0), params=params)

    def _on(self, param: str, axis: int) -> tuple[str, ...]:
        """The spaces along an axis; one that nothing counts gets a space of its size."""
        known = self.writers.get((param, axis))
        if known:
            return tuple(dict.fromkeys(known))
        size = self.shapes[param][axis]
        is_vocabulary = param in self.vocabulary and axis == 0
        name = "vocabulary" if is_vocabulary else f"width.{size}"
        if name not in self.spaces:
            self.spaces[name] = Space(name=name, units=size, kind="fixed" if is_vocabulary else "residual")
        self.slots.append(Slot(param=param, axis=axis, space=name))
        return (name,)


def reasons(derivation: Derivation) -> dict[Kind, str]:
    """Why heads, experts or blocks stay that the config counts."""
    found: dict[Kind, str] = {}
    if all(axes.are_experts or axes.counted.are_heads for axes in derivation.axes):
        read = next((f"{key}: {why}" for key, why in derivation.refused.items() if WIDTHS.search(key)), None)
        found["neuron"] = (
            f"{read or 'no number of the config counts them'}; in Python, example_inputs=… lets them be traced, "
            "and the result loads with dnge_compress.load"
        )
    for key, why in derivation.refused.items():
        name = key.rpartition(".")[2]
        kind: Kind = "expert" if "expert" in name else "head" if HEADS.search(name) else "fixed"
        if kind != "fixed":
            found.setdefault(kind, f"{key}: {why}")
    return found


def _token_tables(model: Any) -> list[nn.Module]:
    """The modules that turn tokens into vectors and back, where the model has them."""
    found = []
    for get in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            found.append(get())
        except NotImplementedError:  # of several towers, or of none
            continue
    return [module for module in found if isinstance(module, nn.Embedding | nn.Linear)]


def _key_of(key: Key) -> tuple[str, int | None]:
    """The dotted name of a key, and the position where a list holds it."""
    if isinstance(key[-1], int):
        return spelled(key[:-1]), key[-1]
    return spelled(key), None


def _tower(path: str) -> str:
    """What a stack of blocks belongs to: "encoder", "text_model"."""
    names = [part for part in block_of(path)[0].split(".") if part not in GENERIC]
    return names[0] if names and names[0].endswith("_model") else ".".join(names)
