"""What a frozen encoder says of every network, made once: embeddings and coarse pictures in half precision, mapped into
memory from a file that nobody sees. What learns on top of them then costs what it costs on small images.

Each network is read as it is and, where pictures are moved at random, in some moved copies: exact moves of the weights
stand in for more fits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from dnge_compress.core.progress import Progress, silent
from dnge_compress.inr.encoders import InrReader, Reading
from dnge_compress.inr.sets import InrSet
from dnge_compress.inr.siren import take
from dnge_compress.inr.views import JITTERS, Jitter, Moves

AT_ONCE = 256  # networks


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
    """Readings of a set's networks, each as it is and in `copies` − 1 moved copies; of one copy without moves."""
    generator = torch.Generator().manual_seed(seed)
    bounds = JITTERS[jitter]
    channels, copies = inrs.siren.widths[-1], copies if bounds != Jitter() else 1
    firsts = range(0, len(inrs), AT_ONCE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        maps = _Maps(Path(folder), copies * len(inrs))
        moves, network = [], []
        for copy in range(copies):
            for first in firsts:
                index = torch.arange(first, min(first + AT_ONCE, len(inrs)))
                moved = Moves.draw(bounds if copy else Jitter(), len(index), channels, generator)
                found = encoder.read(moved.of_networks(take(inrs.stack, index), inrs.siren), inrs.siren)
                maps.put(copy * len(inrs) + first, found)
                moves.append(moved)
                network.append(index)
                progress("read", len(moves), copies * len(firsts), "")
    return Readings(kept=maps.reading(), network=torch.cat(network), moves=Moves.joined(moves))


class _Maps:
    """Half-precision tensors of `rows` rows that lie in files of a folder; the files may go while they are mapped."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.found: dict[str, Tensor] = {}

    def put(self, first: int, reading: Reading) -> None:
        for name, values in vars(reading).items():
            if values is not None:
                if name not in self.found:
                    self.found[name] = self._new(name, values.shape[1:])
                self.found[name][first : first + len(values)] = values

    def reading(self) -> Reading:
        return Reading(**self.found)

    def _new(self, name: str, shape: Sequence[int]) -> Tensor:
        size = self.rows * torch.Size(shape).numel()
        mapped = torch.from_file(str(self.folder / name), shared=True, size=size, dtype=torch.float16)
        return mapped.view(self.rows, *shape)


def _each(reading: Reading, change: Callable[[Tensor], Tensor]) -> Reading:
    return replace(reading, **{name: change(values) for name, values in vars(reading).items() if values is not None})
