"""Attention that a module writes itself, with reshapes: which matrices write and read its heads, and how many it has.

What leads from the projections to the matrix behind them is read off the autograd graph: the tensors on the way tell
the possible numbers of heads. Layouts and numbers are tried, and the proof decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from dnge_compress.graph.rows import Runs
from dnge_compress.graph.tracing.groups import Key, Layers, TracedGroup
from dnge_compress.graph.tracing.layers import Layer
from dnge_compress.graph.tracing.proof import MOST_TOGETHER, Proof
from dnge_compress.graph.tracing.running import call_with

PRODUCTS = ("bmm", "dotproduct", "attention", "softmax", "einsum")  # in names of autograd's nodes
MOST_PROJECTIONS = 4
LEAST_TRIED, MOST_TRIED = 60, 4000  # cuts, between which the size of the network decides
NUMBERS_TRIED = 10_000_000_000  # of parameters, cuts that are tried times numbers of the network


@dataclass(frozen=True, kw_only=True)
class Site:
    """A matrix behind attention, the projections that feed it, and the sizes of the tensors in between."""

    reader: Layer
    projections: tuple[Layer, ...]
    sizes: frozenset[int]

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two blocks of one network have in common."""
        rows = tuple(p.rows("out") for p in self.projections)
        return type(self.reader.module), self.reader.rows("in"), rows, self.sizes


def head_groups(
    net: nn.Module, inputs: Any, groups: list[TracedGroup], proof: Proof
) -> tuple[list[TracedGroup], list[str]]:
    """The groups, with heads in place of what was fixed, and the reading matrices whose heads could not be proved.

    As many layouts are tried as the size of the network allows, however fast the machine is.
    """
    numbers = sum(t.numel() for t in proof.whole.values())
    most = proof.tried + max(LEAST_TRIED, min(MOST_TRIED, NUMBERS_TRIED // max(1, numbers)))
    taken = {key for g in groups if g.is_free or g.residual for key in g.parts}
    kinds: dict[tuple[Any, ...], list[Site]] = {}
    for site in _sites(net, inputs, proof.layers):
        if not taken & {(site.reader.name, "in"), *((p.name, "out") for p in site.projections)}:
            kinds.setdefault(site.signature, []).append(site)
    found: list[TracedGroup] = []
    for sites in kinds.values():
        first = _proved(sites[0], proof, most)
        alike = [first, *(_moved(first, sites[0], site) for site in sites[1:])] if first else []
        if alike and not proof.holds(alike):
            alike = [group for site in sites if (group := _proved(site, proof, most))]
        found += alike
    claimed = {key for g in found for key in g.parts}
    others = [g for g in groups if g.is_free or g.residual or not claimed & set(g.parts)]
    if found and not proof.holds([g for g in (*others, *found) if g.is_free]):
        found, others = [], groups
    cut = {key for g in found for key in g.parts}
    stayed = [site.reader.path for sites in kinds.values() for site in sites if (site.reader.name, "in") not in cut]
    return [*others, *found], stayed


def _proved(site: Site, proof: Proof, most: int) -> TracedGroup | None:
    for together in (1, MOST_TOGETHER):  # attributes; what needs many is tried after all that needs few
        for units, parts in _layouts(site):
            group = TracedGroup(root=site.projections[0], units=units, parts=parts, is_heads=True)
            proved = proof.with_attributes([group], together) if proof.tried < most else None
            if proved:
                return proved[0]
    return None


def _moved(group: TracedGroup, here: Site, there: Site) -> TracedGroup:
    """What was proved for one block, said of another of the same kind."""
    pairs = list(zip((*here.projections, here.reader), (*there.projections, there.reader), strict=True))
    layers = {old.name: new for old, new in pairs}
    paths: dict[str, str] = {}
    for old, new in pairs:
        ends = new.path.split(".")
        paths |= {".".join(old.path.split(".")[:n]): ".".join(ends[:n]) for n in range(len(ends) + 1)}
    return replace(
        group,
        root=layers[group.root.name],
        parts={(layers[name].name, side): runs for (name, side), runs in group.parts.items()},
        attributes=tuple((paths.get(path, path), name, change) for path, name, change in group.attributes),
    )


def _layouts(site: Site) -> Iterator[tuple[int, dict[Key, Runs]]]:
    """Numbers of heads with the rows that each has in every matrix, the most heads first."""
    read = site.reader.rows("in")
    for units in sorted((n for n in site.sizes if 1 < n < read and read % n == 0), reverse=True):
        reader: dict[Key, Runs] = {(site.reader.name, "in"): ((0, read // units),)}
        for projections in _choices(site, read):
            options = [list(_runs(p.rows("out"), read, units)) for p in projections]
            for choice in range(max(map(len, options))):
                if all(options):
                    runs = [own[min(choice, len(own) - 1)] for own in options]
                    yield units, {(p.name, "out"): r for p, r in zip(projections, runs, strict=True)} | reader


def _choices(site: Site, read: int) -> list[tuple[Layer, ...]]:
    """All projections; or, where heads share keys and values, only those that are as wide as what is read."""
    full = tuple(p for p in site.projections if p.rows("out") == read)
    return [site.projections] + ([full] if full and len(full) < len(site.projections) else [])


def _runs(rows: int, read: int, units: int) -> Iterator[Runs]:
    """How a head may lie in a matrix of so many rows: as one run; as queries, keys and values side by side; as keys and
    values side by side."""
    if rows > read and (rows - read) % (2 * units) == 0:
        width, other = read // units, (rows - read) // (2 * units)
        yield (0, width), (read, other), (read + other * units, other)
    if rows > read and rows % (2 * units) == 0:
        yield (0, rows // (2 * units)), (rows // 2, rows // (2 * units))
    if rows % units == 0:
        yield ((0, rows // units),)


def _sites(net: nn.Module, inputs: Any, layers: Layers) -> list[Site]:
    """Every linear or conv layer that reads what attention makes of others' outputs, in the order of execution."""
    by_module = {
        layer.module: layer for layer in layers.values() if layer.op in ("linear", "conv") and layer.gates == 1
    }
    written: dict[Any, Layer] = {}  # autograd's node → the layer whose output it made
    read: list[tuple[Layer, Tensor]] = []
    alive: list[Any] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        layer = by_module[module]
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and not layer.shared:
            read.append((layer, args[0]))
            written[output.grad_fn] = layer
            alive.append(output)

    with ExitStack() as hooks:
        for module in by_module:
            hooks.enter_context(module.register_forward_hook(note))
        call_with(net, inputs)
    found = []
    for layer, x in read:
        site = _site(layer, x.grad_fn, written)
        found += [site] if site is not None else []
    return found


def _site(reader: Layer, node: Any, written: dict[Any, Layer]) -> Site | None:
    """What leads to a layer's input, back to the layers before it."""
    seen: set[Any] = set()
    stack, sizes, makers = [node], set[int](), dict[str, Layer]()
    is_attention = False
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in written:
            makers[written[node].name] = written[node]
            continue
        is_attention |= any(word in node.name().lower() for word in PRODUCTS)
        sizes |= {n for meta in getattr(node, "_input_metadata", ()) for n in meta.shape}
        stack += [parent for parent, _ in node.next_functions]
    if not is_attention or not 0 < len(makers) <= MOST_PROJECTIONS:
        return None
    order: Sequence[str] = [layer.name for layer in written.values()]
    projections = tuple(sorted(makers.values(), key=lambda layer: order.index(layer.name)))
    return Site(reader=reader, projections=projections, sizes=frozenset(sizes))
