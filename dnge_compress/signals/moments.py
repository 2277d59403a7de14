"""Signals of all consumers, gathered in one pass over the calibration inputs: there and back through the model.

A model whose graph for a batch would be large gets its batches in pieces. If its moments are large as well, or one
example is too much, blocks pass one at a time (signals/chain.py): then nothing is alive but one block's graph and
moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dnge_compress.core.paging import Shelf, as_it_is
from dnge_compress.core.parts import NOTHING_KEPT, Parts
from dnge_compress.core.processes import own_share
from dnge_compress.core.progress import Progress, silent
from dnge_compress.graph.products import Watch, products_watched
from dnge_compress.graph.types import ModelGraph
from dnge_compress.signals import second_moments
from dnge_compress.signals.chain import Call, Chain, chain_of, gradient_behind
from dnge_compress.signals.consumers import Place, as_matrix, places_of
from dnge_compress.signals.divergence import attended, attended_outputs, label_loss
from dnge_compress.signals.inference import Inputs, call, has_logits, inference_mode_of, pictured_patches
from dnge_compress.signals.joined import positions_in
from dnge_compress.signals.pieces import in_pieces, numbers_per_position
from dnge_compress.signals.recorder import Recorder
from dnge_compress.signals.recurrence import recurrences_watched
from dnge_compress.signals.second_moments import MomentStore
from dnge_compress.signals.signal import Signal, Signals
from dnge_compress.signals.stored import below, gathered_in, signal_at

SEEDS_APART = 1_000_003  # of the draws of one batch and the next
GRAPH_NUMBERS = 1 << 27  # that modules write for one piece of a batch, about as many as the graph of its gradient holds

Numbered: TypeAlias = Sequence[tuple[int, Inputs]]  # this process's share of the batches, each with its number
# Signals at some places, and for every batch the gradient in front of the block that they are in.
Gathered: TypeAlias = tuple[dict[Place, Signal], Sequence[Tensor]]


def gather_signals(
    model: nn.Module,
    graph: ModelGraph,
    batches: Sequence[Inputs],
    seed: int = 0,
    progress: Progress = silent,
    parts: Parts = NOTHING_KEPT,
) -> Signals:
    """Space name → signals at each of its consumers, all gathered in one pass over the inputs, of which each process
    takes its share. `parts` keep what is finished: all of it, or one block where blocks pass one at a time."""
    task = _Task(model, graph, seed, progress, parts)
    places = places_of(model, graph)
    inside, answered = numbers_per_position(model, batches[0])
    pieces = in_pieces(batches, inside + answered, GRAPH_NUMBERS)
    is_large = (inside + answered) * positions_in(pieces[0]) > 2 * GRAPH_NUMBERS
    chain = (
        task.chain(places, pieces[0]) if is_large or task.moment_bytes(places) > second_moments.MEMORY_BYTES else None
    )
    if chain is None:
        found, _ = task.kept("signals", places, lambda: (task.whole(places, own_share(pieces)), ()))
    else:
        pieces = in_pieces(batches, inside / len(chain.paths) + answered, GRAPH_NUMBERS)
        found = task.in_turn(places, chain, own_share(pieces))
    return {s: tuple(found[p] for p in places if p.space == s) for s in dict.fromkeys(p.space for p in places)}


@dataclass(frozen=True)
class _Block:
    """One block of a chain while the gradients come back to it: how it is called on every batch, what it read there,
    the gradient of what it wrote, and the labels."""

    chain: Chain
    index: int
    calls: Sequence[Call]
    states: Sequence[Tensor]
    gradients: Sequence[Tensor]
    labels: Sequence[int]

    def back(self, batch: int) -> Tensor:
        """Run it again on one batch; the gradient of what it read."""
        return self.chain.back(self.index, self.calls[batch], self.states[batch], self.gradients[batch])


@dataclass(frozen=True)
class _Task:
    """Signals of one model."""

    model: nn.Module
    graph: ModelGraph
    seed: int
    progress: Progress
    parts: Parts

    def moment_bytes(self, places: Sequence[Place]) -> int:
        """What all second moments take together."""
        weights = {p.slot: self.model.get_parameter(p.slot.param).detach() for p in places}
        return 4 * sum(as_matrix(weights[p.slot], self.graph, p.slot).shape[1] ** 2 for p in places)

    def chain(self, places: Sequence[Place], batch: Inputs) -> Chain | None:
        """The model as a chain of blocks in which all places are; None if it is none."""
        with inference_mode_of(self.model):
            found = chain_of(self.model, self.graph, batch, lambda output: self._loss(output, self._draws(0)))
        return found if found and all(p.slot.param.startswith(found.prefixes) for p in places) else None

    def kept(self, name: str, places: Sequence[Place], make: Callable[[], Gathered]) -> Gathered:
        """The signals at some places, and the gradients in front of them, as one part."""
        if not self.parts.are_kept:
            return make()

        def tensors() -> Iterator[tuple[str, Tensor]]:
            signals, gradients = make()
            yield from ((f"gradient/{b}", gradient) for b, gradient in enumerate(gradients))
            for i, place in enumerate(places):
                yield f"{i}/count", torch.tensor(signals[place].count)
                yield from ((f"{i}/{key}", value) for key, value in gathered_in(signals[place]).items())

        found = self.parts.tensors(name, lambda: dict(tensors()))
        signals = {
            place: signal_at(self.model, self.graph, place, int(found[f"{i}/count"]), below(f"{i}/", found.__getitem__))
            for i, place in enumerate(places)
        }
        return signals, _numbered("gradient/", found)

    def whole(self, places: Sequence[Place], batches: Numbered) -> dict[Place, Signal]:
        """Send every batch through the whole model and back."""
        # Copies of activations are needed, as the first batch tells, where the model overwrites them.
        for copies in (False, True):
            recorders = self._recorders(places, MomentStore(), copies)
            if self._run_whole(list(recorders.values()), batches):
                break
        return {place: r.signal() for place, r in recorders.items()}

    def _run_whole(self, recorders: Sequence[Recorder], batches: Numbered) -> bool:
        """False, after the first batch, if activations were overwritten."""
        with (
            torch.enable_grad(),
            inference_mode_of(self.model),
            gradients_started(self.model, self.graph),
            self._recorded(recorders),
        ):
            for done, (number, batch) in enumerate(batches, start=1):
                self._tell(recorders, number, batch)
                output = attended_outputs(call(self.model, batch), attended(batch))
                self._loss(output, self._draws(number)).backward()
                if any(r.overwritten for r in recorders):
                    return False
                for r in recorders:
                    r.end_batch(labels=_labels_in(output))
                self.progress("calibrate", done, len(batches))
        return True

    def in_turn(self, places: Sequence[Place], chain: Chain, batches: Numbered) -> dict[Place, Signal]:
        """Send all batches through one block after the other, and back."""
        store, found = MomentStore(in_turn=True), dict[Place, Signal]()
        with inference_mode_of(self.model):
            states, calls = self._forward(chain, batches)
            gradients: Sequence[Tensor]
            gradients, labels = self._behind(chain, batches, states[-1])
            for i in reversed(range(len(chain.paths))):
                states.pop()
                here = [p for p in places if p.slot.param.startswith(chain.prefixes[i])]
                run = _Block(chain, i, [given[i] for given in calls], states[i], gradients, labels)
                signals, gradients = self.kept(f"block-{i}", here, partial(self._back, run, here, batches, store))
                found |= signals
                self.progress("calibrate", 2 * len(chain.paths) - i, 2 * len(chain.paths))
        return found

    def _forward(self, chain: Chain, batches: Numbered) -> tuple[list[Sequence[Tensor]], list[list[Call]]]:
        """The states in front of every block and behind the last, of every batch, and how blocks are called."""
        # What is a part lies in a file anyway.
        keep = as_it_is if self.parts.are_kept else Shelf("states between blocks").keep
        entered, calls = list[Tensor](), list[list[Call]]()
        with torch.no_grad():
            for _, batch in batches:
                hidden, given = chain.enter(batch)
                entered.append(keep(hidden))
                calls.append(given)
            states: list[Sequence[Tensor]] = [entered]
            for i in range(len(chain.paths)):

                def behind(i: int = i) -> dict[str, Tensor]:
                    block = chain.block(i)
                    return {str(b): keep(calls[b][i].run(block, hidden)) for b, hidden in enumerate(states[i])}

                states.append(_numbered("", self.parts.tensors(f"states-{i}", behind)))
                self.progress("calibrate", i + 1, 2 * len(chain.paths))
        return states, calls

    def _behind(self, chain: Chain, batches: Numbered, states: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
        """The gradients behind the last block, and the labels of every batch."""

        def gradients() -> dict[str, Tensor]:
            found = dict[str, Tensor]()
            for b, ((number, batch), hidden) in enumerate(zip(batches, states, strict=True)):
                loss = partial(self._attended_loss, attended(batch), number)
                found[f"gradient/{b}"], output = gradient_behind(chain, batch, hidden, loss)
                found[f"labels/{b}"] = torch.tensor(_labels_in(attended_outputs(output, attended(batch))))
            return found

        found = self.parts.tensors("gradients", gradients)
        return _numbered("gradient/", found), [int(count) for count in _numbered("labels/", found)]

    def _back(self, run: _Block, here: Sequence[Place], batches: Numbered, store: MomentStore) -> Gathered:
        """Send all batches back through one block."""
        recorders, gradients = self._recorders(here, store, copies=True), list[Tensor]()
        with torch.enable_grad(), self._recorded(list(recorders.values())):
            for b, (number, batch) in enumerate(batches):
                self._tell(recorders.values(), number, batch)
                gradients.append(run.back(b))
                for r in recorders.values():
                    r.end_batch(run.labels[b])
        return {place: r.signal() for place, r in recorders.items()}, gradients

    def _draws(self, number: int) -> torch.Generator:
        """What is drawn with for a batch, whoever has it."""
        return torch.Generator().manual_seed(self.seed + SEEDS_APART * number)

    def _tell(self, recorders: Iterable[Recorder], number: int, batch: Inputs) -> None:
        """Let recorders know which positions of the next batch count."""
        mask, grid, pictures = attended(batch), _grid(batch), _pictures(batch)
        for r in recorders:
            r.mask, r.grid, r.pictures, r.generator = mask, grid, pictures, self._draws(number)

    def _loss(self, output: Tensor, generator: torch.Generator) -> Tensor:
        return label_loss(output, has_logits(self.model), generator)

    def _attended_loss(self, mask: Tensor | None, number: int, output: Tensor) -> Tensor:
        return self._loss(attended_outputs(output, mask), self._draws(number))

    def _recorders(self, places: Sequence[Place], store: MomentStore, copies: bool) -> dict[Place, Recorder]:
        return {p: Recorder(self.model, self.graph, p, store, copies) for p in places}

    @contextmanager
    def _recorded(self, recorders: Sequence[Recorder]) -> Iterator[None]:
        """While entered, recorders hear of what the model computes."""
        with ExitStack() as hooks:
            hooks.enter_context(products_watched(self.model, _watchers(recorders)))
            hooks.enter_context(recurrences_watched(self.model, _recurrent_watchers(recorders)))
            for r in recorders:
                r.attach(hooks)
            yield


def _numbered(prefix: str, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that are named by a prefix and their number, in order."""
    return [tensors[f"{prefix}{i}"] for i in range(sum(name.startswith(prefix) for name in tensors))]


def _labels_in(output: Tensor) -> int:
    return output.numel() // output.shape[-1]


def _grid(batch: Inputs) -> tuple[int, int] | None:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return None if ids is None or ids.dim() != 2 else (ids.shape[0], ids.shape[1])


def _pictures(batch: Inputs) -> int | None:
    """How many pictures of equal size a batch holds as one list of patches."""
    patches = pictured_patches(batch)
    return len(patches) if patches is not None and len(patches.unique()) == 1 else None


@contextmanager
def gradients_started(model: nn.Module, graph: ModelGraph) -> Iterator[None]:
    """Let gradients start behind the first module of every branch, so that no weight needs one."""

    def start(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if not isinstance(out, Tensor) or out.requires_grad:
            return None
        return out.detach().requires_grad_().clone()  # a leaf may not be changed in place by the activation behind it

    with ExitStack() as hooks:
        for module in {p.rpartition(".")[0] for s in graph.steps for p in s.params}:
            hooks.enter_context(model.get_submodule(module).register_forward_hook(start))
        yield


def _watchers(recorders: Sequence[Recorder]) -> dict[tuple[str, int], list[Watch]]:
    """Recorders of experts whose matrices lie in one tensor, which hear of the products with it."""
    watchers: dict[tuple[str, int], list[Watch]] = {}
    for r in recorders:
        if r.slot.part is not None:
            watchers.setdefault((r.slot.param, r.slot.part), []).append(r.watch)
    return watchers


def _recurrent_watchers(recorders: Sequence[Recorder]) -> dict[str, list[Watch]]:
    watchers: dict[str, list[Watch]] = {}
    for r in recorders:
        if isinstance(r.module, nn.RNNBase):
            watchers.setdefault(r.slot.param, []).append(r.watch)
    return watchers
