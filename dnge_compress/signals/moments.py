"""Signals of all consumers, gathered in one pass over the calibration inputs: there and back through the model.

A model whose graph for a batch would be large gets its batches in pieces. If its moments are large as well, or one
example is too much, blocks pass one at a time (signals/chain.py): then nothing is alive but one block's graph and
moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dnge_compress.core.paging import Shelf
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

SEEDS_APART = 1_000_003  # of the draws of one batch and the next
GRAPH_NUMBERS = 1 << 27  # that modules write for one piece of a batch, about as many as the graph of its gradient holds

Numbered: TypeAlias = Sequence[tuple[int, Inputs]]  # this process's share of the batches, each with its number


def gather_signals(
    model: nn.Module, graph: ModelGraph, batches: Sequence[Inputs], seed: int = 0, progress: Progress = silent
) -> Signals:
    """Space name → signals at each of its consumers, all gathered in one pass over the inputs, of which each process
    takes its share."""
    task = _Task(model, graph, seed, progress)
    places = places_of(model, graph)
    inside, answered = numbers_per_position(model, batches[0])
    pieces = in_pieces(batches, inside + answered, GRAPH_NUMBERS)
    is_large = (inside + answered) * positions_in(pieces[0]) > 2 * GRAPH_NUMBERS
    chain = (
        task.chain(places, pieces[0]) if is_large or task.moment_bytes(places) > second_moments.MEMORY_BYTES else None
    )
    if chain is None:
        found = task.whole(places, own_share(pieces))
    else:
        pieces = in_pieces(batches, inside / len(chain.paths) + answered, GRAPH_NUMBERS)
        found = task.in_turn(places, chain, own_share(pieces))
    return {s: tuple(found[p] for p in places if p.space == s) for s in dict.fromkeys(p.space for p in places)}


@dataclass(frozen=True)
class _Task:
    """Signals of one model."""

    model: nn.Module
    graph: ModelGraph
    seed: int
    progress: Progress

    def moment_bytes(self, places: Sequence[Place]) -> int:
        """What all second moments take together."""
        weights = {p.slot: self.model.get_parameter(p.slot.param).detach() for p in places}
        return 4 * sum(as_matrix(weights[p.slot], self.graph, p.slot).shape[1] ** 2 for p in places)

    def chain(self, places: Sequence[Place], batch: Inputs) -> Chain | None:
        """The model as a chain of blocks in which all places are; None if it is none."""
        with inference_mode_of(self.model):
            found = chain_of(self.model, self.graph, batch, lambda output: self._loss(output, self._draws(0)))
        return found if found and all(p.slot.param.startswith(found.prefixes) for p in places) else None

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
        store, done = MomentStore(in_turn=True), 0
        found: dict[Place, Signal] = {}
        with inference_mode_of(self.model):
            with torch.no_grad():
                keep = Shelf("states between blocks").keep
                states, calls = [list[Tensor]()], list[list[Call]]()
                for _, batch in batches:
                    hidden, given = chain.enter(batch)
                    states[0].append(keep(hidden))
                    calls.append(given)
                for i in range(len(chain.paths)):
                    block = chain.block(i)
                    states.append([keep(calls[b][i].run(block, hidden)) for b, hidden in enumerate(states[-1])])
                    done = self._passed(done, chain)
            gradients, labels = list[Tensor](), list[int]()
            for (number, batch), hidden in zip(batches, states[-1], strict=True):
                loss = partial(self._attended_loss, attended(batch), number)
                gradient, output = gradient_behind(chain, batch, hidden, loss)
                gradients.append(gradient)
                labels.append(_labels_in(attended_outputs(output, attended(batch))))
            for i in reversed(range(len(chain.paths))):
                states.pop()
                here = [p for p in places if p.slot.param.startswith(chain.prefixes[i])]
                recorders = self._recorders(here, store, copies=True)
                with torch.enable_grad(), self._recorded(list(recorders.values())):
                    for b, (number, batch) in enumerate(batches):
                        self._tell(recorders.values(), number, batch)
                        gradients[b] = chain.back(i, calls[b][i], states[i][b], gradients[b])
                        for r in recorders.values():
                            r.end_batch(labels[b])
                found |= {place: r.signal() for place, r in recorders.items()}
                done = self._passed(done, chain)
        return found

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

    def _passed(self, done: int, chain: Chain) -> int:
        self.progress("calibrate", done + 1, 2 * len(chain.paths))
        return done + 1


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
