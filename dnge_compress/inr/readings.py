"""What a frozen encoder says of every network, made once: embeddings and coarse pictures in half precision, mapped into
memory from a file that nobody sees. What learns on top of them then costs what it costs on small images.

Each network is read as it is and, where pictures are moved at random, in some moved copies: exact moves of the weights
stand in for more fits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import IO

import torch
from jaxtyping import Int
from torch import Tensor

from dnge_compress.core.errors import DataError, refuse_below
from dnge_compress.core.paging import mapped, written
from dnge_compress.core.progress import Progress, silent
from dnge_compress.inr.encoders import InrReader, Reading
from dnge_compress.inr.learning import refuse_empty
from dnge_compress.inr.sets import InrSet
from dnge_compress.inr.siren import take
from dnge_compress.inr.views import Jitter, Moves, jitter_named

AT_ONCE = 256  # networks
CLOSE = 0.01  # relative, of readings in half precision
READ_AGAIN = "make them with read_all(encoder, set)"


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Readings of M networks or moved copies, which network of the set each is, and how it was moved."""

    kept: Reading  # float16
    network: Int[Tensor, " M"]
    moves: Moves

    def __len__(self) -> int:
        return len(self.network)

    def select(self, index: Int[Tensor, " B"]) -> Reading:
        """The readings at `index`, in full precision."""
        return _each(self.kept, lambda values: values[index].float())


@torch.no_grad()
def read_all(
    encoder: InrReader,
    inrs: InrSet,
    *,
    jitter: str = "none",
    copies: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> Readings:
    """Readings of a set's networks, each as it is and in `copies` − 1 moved copies; of one copy without moves. Raises
    DataError for a set without networks, DngeError for no copy or an unknown `jitter`."""
    bounds = jitter_named(jitter)
    refuse_below(1, copies=copies)
    refuse_empty(inrs)
    generator = torch.Generator().manual_seed(seed)
    channels, copies = inrs.siren.widths[-1], copies if bounds != Jitter() else 1
    firsts = range(0, len(inrs), AT_ONCE)
    with _Pages() as pages:
        moves, network = [], []
        for copy in range(copies):
            for first in firsts:
                index = torch.arange(first, min(first + AT_ONCE, len(inrs)))
                moved = Moves.draw(bounds if copy else Jitter(), len(index), channels, generator)
                found = encoder.read(moved.of_networks(take(inrs.stack, index), inrs.siren), inrs.siren)
                pages.add(found)
                moves.append(moved)
                network.append(index)
                progress("read", len(moves), copies * len(firsts), "")
        return Readings(kept=pages.reading(), network=torch.cat(network), moves=Moves.joined(moves))


@torch.no_grad()
def refuse_other_readings(readings: Readings, encoder: InrReader, inrs: InrSet, needs_picture: bool) -> None:
    """Raise DataError for readings of other networks than a set's, or by another encoder; with pictures if those are
    needed. Two of the networks are read again to tell."""
    count, kept = int(readings.network.max()) + 1, readings.kept
    if count != len(inrs):
        raise DataError(f"the readings are of {count} networks, and the set has {len(inrs)}; {READ_AGAIN}")
    if kept.embedding.shape[1] != encoder.embedding:
        raise DataError(
            f"the readings have embeddings of {kept.embedding.shape[1]} numbers, and the encoder's have "
            f"{encoder.embedding}; {READ_AGAIN}"
        )
    wanted = [encoder.outputs, encoder.picture_side, encoder.picture_side]
    shape = list(kept.picture.shape[1:]) if kept.picture is not None else None
    if needs_picture and shape != wanted:
        raise DataError(f"the readings have pictures {shape}, and a skip needs {wanted}; {READ_AGAIN}")
    index = torch.tensor([0, count - 1])
    said = encoder(readings.moves.select(index).of_networks(take(inrs.stack, index), inrs.siren), inrs.siren)
    if not (readings.select(index).embedding - said).abs().max() <= CLOSE * said.abs().max():
        raise DataError(f"the readings are of other networks than the set's, or by another encoder; {READ_AGAIN}")


class _Pages:
    """Half-precision tensors in files that nobody sees; the files may be closed while they are mapped."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.files: dict[str, IO[bytes]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> _Pages:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, reading: Reading) -> None:
        """Write the next rows."""
        for name, values in vars(reading).items():
            if values is not None:
                if name not in self.files:
                    self.files[name] = self.stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
                    self.shapes[name] = (0, *values.shape[1:])
                written(self.files[name], values.half(), "readings of networks")
                self.shapes[name] = (self.shapes[name][0] + len(values), *values.shape[1:])

    def reading(self) -> Reading:
        """All rows, mapped into memory."""
        found = {name: mapped(file, 0, self.shapes[name], torch.float16) for name, file in self.files.items()}
        return Reading(**found)


def _each(reading: Reading, change: Callable[[Tensor], Tensor]) -> Reading:
    return replace(reading, **{name: change(values) for name, values in vars(reading).items() if values is not None})
