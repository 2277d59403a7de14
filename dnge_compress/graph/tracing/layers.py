"""Run a module once and note which layers its inputs pass, in order: what a traced graph is made of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from dnge_compress.core.errors import DataError
from dnge_compress.graph.layer_types import BATCH_NORMS, CONVS, INSTANCE_NORMS, TRANSPOSED, is_depthwise
from dnge_compress.graph.rows import Runs
from dnge_compress.graph.tracing.running import call_with
from dnge_compress.graph.types import Op

Side = Literal["out", "in"]
Ends = tuple[tuple[str, int], ...]  # tensors (suffix) and their axes

OUT, IN = (("weight", 0), ("bias", 0)), (("weight", 1),)
STATISTICS = (("running_mean", 0), ("running_var", 0))
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}  # by the mode of a recurrent module


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that was executed: the tensors (suffix, axis) that run over its outputs and over its inputs.

    It `is_behind` if it got the very output of the layer executed before it.
    A layer without `reads` works on each channel alone (norms, depthwise convs), on each of its `blocks` of channels
    alone (group norms, convs of many groups), or looks rows up (embeddings). A conv of few groups, its `shares`, loses
    as many channels in each. The rows of an output are repeated `gates` times.
    A recurrent module is two layers each time it is stacked: one that reads what is below, and one that
    `reads_itself`. `counts` are attributes of the module that count rows on a side: how many rows make one.
    """

    name: str
    path: str
    module: Any
    op: Op
    writes: Ends
    reads: Ends = ()
    activation: str = ""
    shared: bool = False
    is_behind: bool = False
    blocks: int = 0
    shares: int = 1
    gates: int = 1
    reads_itself: bool = False
    counts: Mapping[tuple[Side, str], int] = field(default_factory=dict)

    def tensors(self, side: Side) -> Ends:
        """Full name and axis of the tensors on one side, those the module really has."""
        owned = own_tensors(self.module)
        ends = self.writes if side == "out" else self.reads
        return tuple((f"{self.path}.{name}", axis) for name, axis in ends if name in owned)

    def rows(self, side: Side) -> int:
        """How many outputs or inputs it has."""
        owned = own_tensors(self.module)
        if side == "in" and self.shares > 1:
            return int(self.module.in_channels)
        ends = self.writes if side == "out" else self.reads
        sizes = [owned[name].shape[axis] for name, axis in ends if name in owned]
        if sizes:
            return sizes[0]
        return next(getattr(self.module, name) for name in _SIZES[side] if hasattr(self.module, name))

    def in_tensors(self, side: Side, runs: Runs) -> Runs:
        """The runs of rows in a side's tensors: those of the first share, where all shares have the same columns."""
        if side == "out" or self.shares == 1:
            return runs
        return tuple((start, n) for start, n in runs if start < self.rows(side) // self.shares)

    def together(self, side: Side, rows: set[int]) -> dict[Side, set[int]]:
        """The rows on both sides that go with some rows on one: all gates, whole blocks, the same of every share, what
        it reads of itself."""
        if self.blocks:
            size = self.rows(side) // self.blocks
            touched = {r // size for r in rows}
            sides: tuple[Side, ...] = ("in", "out") if isinstance(self.module, CONVS) else (side,)
            widths = {s: self.rows(s) // self.blocks for s in sides}
            return {s: {b * n + i for b in touched for i in range(n)} for s, n in widths.items()}
        if self.shares > 1:
            size = self.rows(side) // self.shares
            return {side: {share * size + r % size for share in range(self.shares) for r in rows}}
        if side == "in":
            return {} if self.reads_itself else {side: rows}
        units = self.rows("out") // self.gates
        found: dict[Side, set[int]] = {"out": {gate * units + r for gate in range(self.gates) for r in rows}}
        return found | ({"in": rows} if self.reads_itself else {})


_SIZES: dict[Side, tuple[str, ...]] = {
    "out": ("num_channels", "num_features"),
    "in": ("in_channels", "num_channels", "num_features"),
}


def executed_layers(net: nn.Module, inputs: Any) -> list[Layer]:
    """The layers this package can describe, in the order in which `inputs` pass them. Raises DataError."""
    paths = {module: path for path, module in net.named_modules()}
    names: dict[int, int] = {}
    for _, p in net.named_parameters(remove_duplicate=False):
        names[id(p)] = names.get(id(p), 0) + 1
    found: dict[nn.Module, list[Layer]] = {}
    maker: dict[int, nn.Module] = {}  # id of a tensor → the layer whose output it is, norms passed over
    alive: list[Any] = []  # ids are unique among living tensors only
    last: list[tuple[int, int]] = []  # id and version of the last layer's output: in-place changes raise the version

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        source = maker.get(id(first)) if first is not None else None
        layers = describe(paths[module], module)
        if layers:
            is_behind = first is not None and bool(last) and last[-1] == (id(first), first._version)
            if isinstance(output, Tensor):
                last.append((id(output), output._version))
            passes_on = layers[0].op in ("batchnorm", "norm") and source is not None
            maker[id(output)] = source if passes_on and source is not None else module
            alive.append(output)
            tied = any(names[id(p)] > 1 for p in module.parameters())
            again = tied or module in found
            found[module] = [replace(layer, shared=again, is_behind=is_behind) for layer in layers]
        elif source is not None and _is_activation(module) and not found[source][0].activation:
            activation = type(module).__name__.lower().removesuffix("activation")
            found[source] = [replace(layer, activation=activation) for layer in found[source]]

    with ExitStack() as hooks:
        for path, m in net.named_modules():
            if not list(m.children()) or describe(path, m):
                hooks.enter_context(m.register_forward_hook(record))
        try:
            call_with(net, inputs)
        except Exception as e:
            what = f"{type(net).__name__} can't be called with these example_inputs ({type(e).__name__}: {e})"
            raise DataError(f"{what}; give a tensor, a tuple or a dict of its arguments") from e
    return [layer for layers in found.values() for layer in layers]


def describe(path: str, module: nn.Module) -> list[Layer]:
    """The layers that a module is; none where it is no layer, or one whose weight is computed when it is called."""
    owned = own_tensors(module)
    if isinstance(module, nn.RNNBase):
        return _recurrent(path, module) if module.mode in GATES and not module.proj_size else []
    if isinstance(module, (nn.GroupNorm, *INSTANCE_NORMS)):
        return [_channel_norm(path, module)]
    if not owned:
        return []
    layer: dict[str, Any] = {"name": path, "path": path, "module": module}
    if isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear, nn.Embedding)):
        if "weight" not in owned:
            return []
        if isinstance(module, nn.Linear):
            return [Layer(op="linear", writes=OUT, reads=IN, **layer)]
        if isinstance(module, nn.Embedding):
            return [Layer(op="embed", writes=(("weight", 1),), **layer)]
        return _conv(module, layer)
    if isinstance(module, BATCH_NORMS):
        return [Layer(op="batchnorm", writes=OUT + STATISTICS, **layer)]
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return [Layer(op="norm", writes=(("weight", 0),), counts={("out", "num_parameters"): 1}, **layer)]
    is_flat_norm = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    return [Layer(op="norm", writes=OUT, **layer)] if is_flat_norm else []


def hindrances(net: nn.Module) -> list[str]:
    """Why some modules can't be layers, though they hold weights that others like them could lose."""
    computed, projected = [], []
    for path, module in net.named_modules():
        is_matrix = isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear))
        if is_parametrized(module) or (is_matrix and "weight" not in own_tensors(module)):
            computed.append(path)
        elif isinstance(module, nn.RNNBase) and module.proj_size:
            projected.append(path)
    found = []
    if computed:
        found.append(
            f"the weight of {listed(computed)} is computed at each call (weight_norm, spectral_norm or another "
            "parametrization), so its rows can't go; make it a plain weight first, with "
            "torch.nn.utils.parametrize.remove_parametrizations (remove_weight_norm for the old kind)"
        )
    if projected:
        found.append(f"{listed(projected)} projects its hidden state (proj_size), which is not cut")
    return found


def listed(paths: list[str]) -> str:
    """The first few of some module paths, in quotes."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(f"'{path}'" for path in paths[:3]) + more


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers without those of its children."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _conv(module: Any, layer: dict[str, Any]) -> list[Layer]:
    transposed = isinstance(module, TRANSPOSED)
    if module.groups == 1:
        if transposed:  # stored [in, out, …]
            return [Layer(op="conv_t", writes=(("weight", 1), ("bias", 0)), reads=(("weight", 0),), **layer)]
        return [Layer(op="conv", writes=OUT, reads=IN, **layer)]
    if is_depthwise(module):
        return [Layer(op="norm", writes=OUT, counts={("out", "groups"): 1}, **layer)]
    if transposed or module.groups == module.out_channels:  # the latter torch-pruning takes for a depthwise conv
        return []
    if module.groups < module.in_channels // module.groups:
        return [Layer(op="conv", writes=OUT, reads=IN, shares=module.groups, **layer)]
    counts: dict[tuple[Side, str], int] = {("out", "groups"): module.out_channels // module.groups}
    counts[("in", "in_channels")] = 1
    return [Layer(op="norm", writes=OUT, blocks=module.groups, counts=counts, **layer)]


def _channel_norm(path: str, module: Any) -> Layer:
    """Norms that may have no tensor at all, and count their channels all the same."""
    layer: dict[str, Any] = {"name": path, "path": path, "module": module, "op": "norm"}
    if isinstance(module, nn.GroupNorm):
        size = module.num_channels // module.num_groups
        counts: dict[tuple[Side, str], int] = {("out", "num_groups"): size, ("out", "num_channels"): 1}
        return Layer(writes=OUT, blocks=module.num_groups, counts=counts, **layer)
    return Layer(writes=OUT + STATISTICS, counts={("out", "num_features"): 1}, **layer)


def _recurrent(path: str, module: nn.RNNBase) -> list[Layer]:
    """Two layers for every direction of every level: what is below is read by the first, what was before by the
    second."""
    gates, layers = GATES[module.mode], []
    for level in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            suffix = f"l{level}{direction}"
            counts: dict[tuple[Side, str], int] = {}
            if suffix == "l0":
                counts = {("out", "hidden_size"): gates, ("in", "input_size"): 1}
            for part, reads_itself in (("ih", False), ("hh", True)):
                layers.append(
                    Layer(
                        name=f"{path}.{part}_{suffix}",
                        path=path,
                        module=module,
                        op="linear",
                        writes=((f"weight_{part}_{suffix}", 0), (f"bias_{part}_{suffix}", 0)),
                        reads=((f"weight_{part}_{suffix}", 1),),
                        gates=gates,
                        reads_itself=reads_itself,
                        counts={} if reads_itself else counts,
                    )
                )
    return layers


def _is_activation(module: nn.Module) -> bool:
    named = type(module).__name__.endswith("Activation")  # transformers' own: GELUActivation, …
    return not list(module.parameters()) and (named or type(module).__module__ == "torch.nn.modules.activation")
