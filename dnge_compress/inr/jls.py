"""INR2JLS: a latent space that a network's weights and its image share (arXiv 2607.02166), learned by decoding.

The encoder reads the weights; every cell of the latent (one per view and place) makes its own channels of the
embedding, and of the states whose points lie within it where there is a `skip`; a small decoder draws the image and its
five flips and turns. A classifier reads the latents.

Letters: N networks, V views, C latent channels, L side of the latent, S side of the image, E size of the embedding,
P side of the encoder's coarse picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor, nn

from dnge_compress.core.errors import DataError, refuse_below
from dnge_compress.core.precision import fast_products
from dnge_compress.core.progress import Progress, silent
from dnge_compress.inr.encoders import InrReader, Reading
from dnge_compress.inr.head import HeadConfig, LatentHead
from dnge_compress.inr.learning import (
    InrBatch,
    TrainSettings,
    optimise,
    refuse_empty,
    refuse_labels,
    share_right,
    shuffled,
    train,
)
from dnge_compress.inr.readings import Readings, read_all, refuse_other_readings
from dnge_compress.inr.sets import InrSet
from dnge_compress.inr.siren import Siren, Stack
from dnge_compress.inr.views import VIEWS, Moves, in_views, six_views

CELL = 4  # pixels of a cell's side, by the decoder's two doublings


@dataclass(frozen=True, kw_only=True)
class JlsConfig:
    """Sizes: side of the square images (a multiple of 4), latent channels, width of the latent generator, size of a
    cell's learned vector (`place`), classes, and the classifier's (`head`).

    `views` of the six, drawn anew, are learned from in one step; the others cost as much and teach little more. With
    `skip`, a cell hears the channels whose points lie in it: the encoder's states must be a grid of a multiple of
    side / 4 points. What a frozen encoder says is read once for all steps, of every network and, where pictures are
    moved at random, of `copies` − 1 moved copies.
    """

    side: int = 28
    channels: int = 32
    hidden: int = 256
    place: int = 64
    classes: int = 10
    head: HeadConfig = field(default_factory=HeadConfig)
    views: int = 2
    skip: bool = False
    copies: int = 4

    def __post_init__(self) -> None:
        refuse_below(
            1,
            side=self.side,
            channels=self.channels,
            hidden=self.hidden,
            place=self.place,
            classes=self.classes,
            copies=self.copies,
        )
        if self.side % CELL:
            raise DataError(f"images of {self.side} pixels can't be drawn; the side must be a multiple of {CELL}")
        if not 1 <= self.views <= VIEWS:
            raise DataError(f"a step can't learn from {self.views} views; there are {VIEWS}")


class INR2JLS(nn.Module):
    """Encoder, latent generator, decoder and classifier; as many colours are drawn as the encoder reads outputs.

    It learns to draw first, then to classify; both report to `progress` after every step. An encoder that asks for no
    gradients (`encoder.requires_grad_(False)`) stays as it is throughout, and drawing too is learned from its answers.

        jls = INR2JLS(InrEncoder(InrEncoderConfig()), JlsConfig())
        jls.fit(inrs, images, TrainSettings(steps=2000))
        pictures = jls.decode(jls.encode(inrs.stack, inrs.siren))
        jls.fit_classifier(inrs, TrainSettings(steps=1000))
        classes = jls.classify(inrs.stack, inrs.siren).argmax(1)
    """

    def __init__(self, encoder: InrReader, config: JlsConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        latent, c, colours = config.side // CELL, config.channels, encoder.outputs
        self.cells = nn.Parameter(torch.randn(VIEWS * latent**2, config.place))
        self.place = nn.Linear(config.place, config.hidden)
        self.content = nn.Linear(encoder.embedding, config.hidden)
        self.generate = nn.Linear(config.hidden, c)
        self.draw = nn.Sequential(
            nn.ConvTranspose2d(c, 2 * c, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2 * c, colours, 4, 2, 1)
        )
        self.own = nn.Linear(self._points_of_a_cell(), config.hidden) if config.skip else None
        self.recognise = LatentHead(c, config.classes, config.head)
        self.eval()

    def fit(
        self,
        inrs: InrSet,
        images: Tensor,
        settings: TrainSettings,
        *,
        readings: Readings | None = None,
        progress: Progress = silent,
    ) -> list[float]:
        """Learn to draw the images `[M, C, S, S]` in −1 … 1, which `inrs.image` numbers, from their networks.

        `readings` of a frozen encoder, where `read_all` made them of this set before; they are moved as they were read,
        and `settings.jitter` has no effect. Returns the mean squared error of every step. Raises DataError.
        """
        refuse_empty(inrs)
        shape, last = [self.encoder.outputs, self.config.side, self.config.side], int(inrs.image.max())
        if list(images.shape[1:]) != shape or last >= len(images) or int(inrs.image.min()) < 0:
            raise DataError(f"images have shape {tuple(images.shape)}; give one {shape} for each number up to {last}")
        if not images.is_floating_point() or not images.abs().max() <= 1:
            raise DataError("images must be floating-point numbers in −1 … 1; see `dnge_compress.inr.sets.pictures`")
        chance = torch.Generator().manual_seed(settings.seed)

        def missed(reading: Reading, moves: Moves, network: Tensor) -> Tensor:
            views = self._some_views(chance)
            wanted = six_views(moves.of_images(images[inrs.image[network]]), views)
            return nnf.mse_loss(self.decode(self.latents(reading, views)), wanted)

        if readings is not None or not any(p.requires_grad for p in self.encoder.parameters()):
            found = self._readings(inrs, settings, progress, readings)

            def loss_at(index: Tensor) -> Tensor:
                return missed(found.select(index), found.moves.select(index), found.network[index])

            return optimise(self, shuffled(len(found), settings, chance), loss_at, settings, progress)

        def loss(batch: InrBatch) -> Tensor:
            return missed(self._read(batch.stack, batch.siren), batch.moves, batch.index)

        return train(self, inrs, loss, settings, progress)

    def fit_classifier(
        self,
        inrs: InrSet,
        settings: TrainSettings,
        *,
        fine_tune: bool = False,
        readings: Readings | None = None,
        progress: Progress = silent,
    ) -> list[float]:
        """Learn the set's labels from the latents; what makes the latents learns too if `fine_tune`, the encoder with
        it as far as it asks for gradients, from networks that are moved anew in every step. Without it, what the
        encoder says is read once, or given as `readings` that `read_all` made of this set before; `settings.jitter` has
        no effect on those.

        Returns the loss of every step. Raises DataError.
        """
        refuse_labels(inrs, self.config.classes)
        if fine_tune and readings is not None:
            raise DataError("readings are of a frozen encoder, and fine_tune lets it learn; give one of the two")
        chance = torch.Generator().manual_seed(settings.seed)
        if fine_tune:

            def loss(batch: InrBatch) -> Tensor:
                reading = self._read(batch.stack, batch.siren)
                latents = self.latents(reading, self._views_of_each(len(batch.index), chance))
                return self._missed(latents, inrs.labels[batch.index])

            return train(self, inrs, loss, settings, progress)
        found = self._readings(inrs, settings, progress, readings)

        def loss_at(index: Tensor) -> Tensor:
            views = self._views_of_each(len(index), chance)
            with torch.no_grad():  # what has no gradient stays as it is
                latents = self.latents(found.select(index), views)
            return self._missed(latents, inrs.labels[found.network[index]])

        return optimise(self, shuffled(len(found), settings, chance), loss_at, settings, progress)

    def encode(self, stack: Stack, siren: Siren, views: Sequence[int] = range(VIEWS)) -> Float[Tensor, "N V C L L"]:
        """Latents `[N, V, C, L, L]` of stacked networks, for these of the six views."""
        return self.latents(self._read(stack, siren), views)

    def latents(
        self, reading: Reading, views: Sequence[int] | Int[Tensor, "N V"] = range(VIEWS)
    ) -> Float[Tensor, "N V C L L"]:
        """Latents `[N, V, C, L, L]` of what the encoder said, for these of the six views, or each network's own."""
        latent = self.config.side // CELL
        shown = views if isinstance(views, Tensor) else list(views)
        with fast_products(self.training):
            places = self.place(self.cells).unflatten(0, (VIEWS, -1))[shown]  # [(N,) V, L², hidden]
            heard = places + self.content(reading.embedding)[:, None, None]
            if self.own is not None and reading.picture is not None:
                heard = heard + self.own(_by_cell(in_views(reading.picture, views), latent))
            found = self.generate(torch.relu(heard))  # [N, V, L², C]
        return found.float().unflatten(2, (latent, latent)).permute(0, 1, 4, 2, 3)

    def decode(self, latents: Float[Tensor, "N V C L L"]) -> Float[Tensor, "N V colours S S"]:
        """Pictures `[N, V, colours, S, S]` from latents `[N, V, C, L, L]`, views as of `six_views`; near −1 … 1, not
        clamped."""
        with fast_products(self.training):
            drawn = self.draw(latents.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        return drawn.float().unflatten(0, latents.shape[:2])

    def classify(self, stack: Stack, siren: Siren) -> Float[Tensor, "N classes"]:
        """Logits `[N, classes]` of stacked networks, summed over the views."""
        latents = self.encode(stack, siren)
        return self._per_view(latents).unflatten(0, latents.shape[:2]).sum(1)

    def accuracy(self, inrs: InrSet) -> float:
        """Share of the set's networks whose class is found."""
        return share_right(self.classify, inrs)

    def _read(self, stack: Stack, siren: Siren) -> Reading:
        with fast_products(self.training):
            return self.encoder.read(stack, siren) if self.own else Reading(embedding=self.encoder(stack, siren))

    def _readings(self, inrs: InrSet, settings: TrainSettings, progress: Progress, given: Readings | None) -> Readings:
        if given is not None:
            refuse_other_readings(given, self.encoder, inrs, self.own is not None)
            return given
        return read_all(
            self.encoder, inrs, jitter=settings.jitter, copies=self.config.copies, seed=settings.seed, progress=progress
        )

    def _some_views(self, chance: torch.Generator) -> list[int]:
        return torch.randperm(VIEWS, generator=chance)[: self.config.views].tolist()

    def _views_of_each(self, networks: int, chance: torch.Generator) -> Int[Tensor, "N V"]:
        """Drawn for each network: batch norms then see a mixture of all six in every step."""
        return torch.rand(networks, VIEWS, generator=chance).argsort(1)[:, : self.config.views]

    def _per_view(self, latents: Tensor) -> Tensor:
        with fast_products(self.training):
            return self.recognise(latents.flatten(0, 1)).float()

    def _missed(self, latents: Float[Tensor, "N V C L L"], labels: Int[Tensor, " N"]) -> Tensor:
        with fast_products(self.training):
            return self.recognise.missed(latents.flatten(0, 1), labels.repeat_interleave(latents.shape[1]))

    def _points_of_a_cell(self) -> int:
        """Numbers that a cell hears of the encoder's picture."""
        points, latent = self.encoder.picture_side, self.config.side // CELL
        if not points or points % latent:
            told = f"{points} × {points} points" if points else "no grid of points"
            raise DataError(
                f"the encoder's states are {told}, and a skip to {latent} × {latent} cells needs a multiple; "
                f"give InrEncoderConfig(hidden={(2 * latent) ** 2})"
            )
        return self.encoder.outputs * (points // latent) ** 2


def _by_cell(pictures: Float[Tensor, "N V C P P"], cells: int) -> Float[Tensor, "N V _ _"]:
    """What lies in each cell: `[N, V, cells², C · (P / cells)²]`."""
    return nnf.pixel_unshuffle(pictures, pictures.shape[-1] // cells).flatten(3).mT
