"""INR2JLS: a latent space that a network's weights and its image share (arXiv 2607.02166), learned by decoding.

The encoder reads the weights; every cell of the latent (one per view and place) makes its own channels of the
embedding; a small decoder draws the image and its five flips and turns. A classifier reads the latents.

Letters: N networks, V views, C latent channels, L side of the latent, S side of the image, E size of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.core.errors import DataError, refuse_below
from dnge_compress.core.precision import fast_products
from dnge_compress.core.progress import Progress, silent
from dnge_compress.inr.classifier import SMOOTHING
from dnge_compress.inr.encoders import InrReader
from dnge_compress.inr.learning import InrBatch, TrainSettings, refuse_empty, refuse_labels, share_right, train
from dnge_compress.inr.sets import InrSet
from dnge_compress.inr.siren import Siren, Stack
from dnge_compress.inr.views import VIEWS, six_views

CELL = 4  # pixels of a cell's side, by the decoder's two doublings


@dataclass(frozen=True, kw_only=True)
class JlsConfig:
    """Sizes: side of the square images (a multiple of 4), latent channels, width of the latent generator, size of a
    cell's learned vector (`place`), classes; and the share of the classifier's inputs that is dropped while it learns.

    `views` of the six, drawn anew, are learned from in one step; the others cost as much and teach little more.
    """

    side: int = 28
    channels: int = 32
    hidden: int = 256
    place: int = 64
    classes: int = 10
    dropout: float = 0.2
    views: int = 2

    def __post_init__(self) -> None:
        refuse_below(
            1, side=self.side, channels=self.channels, hidden=self.hidden, place=self.place, classes=self.classes
        )
        if not 0 <= self.dropout < 1:
            raise DataError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.side % CELL:
            raise DataError(f"images of {self.side} pixels can't be drawn; the side must be a multiple of {CELL}")
        if not 1 <= self.views <= VIEWS:
            raise DataError(f"a step can't learn from {self.views} views; there are {VIEWS}")


class INR2JLS(nn.Module):
    """Encoder, latent generator, decoder and classifier; as many colours are drawn as the encoder reads outputs.

    It learns to draw first, then to classify; both report to `progress` after every step.

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
        self.recognise = nn.Sequential(
            nn.Conv2d(c, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Dropout2d(config.dropout),
            nn.Conv2d(64, 96, 3, 2, 1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.LazyLinear(config.classes),
        )
        self.eval()
        self.recognise(torch.zeros(2, c, latent, latent))  # gives the last layer its size

    def fit(self, inrs: InrSet, images: Tensor, settings: TrainSettings, *, progress: Progress = silent) -> list[float]:
        """Learn to draw the images `[M, C, S, S]` in −1 … 1, which `inrs.image` numbers, from their networks.

        Returns the mean squared error of every step. Raises DataError.
        """
        refuse_empty(inrs)
        shape, last = [self.encoder.outputs, self.config.side, self.config.side], int(inrs.image.max())
        if list(images.shape[1:]) != shape or last >= len(images) or int(inrs.image.min()) < 0:
            raise DataError(f"images have shape {tuple(images.shape)}; give one {shape} for each number up to {last}")
        if not images.is_floating_point() or not images.abs().max() <= 1:
            raise DataError("images must be floating-point numbers in −1 … 1; see `dnge_compress.inr.sets.pictures`")
        chance = torch.Generator().manual_seed(settings.seed)

        def loss(batch: InrBatch) -> Tensor:
            views = self._some_views(chance)
            wanted = six_views(batch.moves.of_images(images[inrs.image[batch.index]]), views)
            return nnf.mse_loss(self.decode(self.encode(batch.stack, batch.siren, views)), wanted)

        return train(self, inrs, loss, settings, progress)

    def fit_classifier(
        self, inrs: InrSet, settings: TrainSettings, *, fine_tune: bool = False, progress: Progress = silent
    ) -> list[float]:
        """Learn the set's labels from the latents; what makes the latents learns too if `fine_tune`.

        Returns the loss of every step. Raises DataError.
        """
        refuse_labels(inrs, self.config.classes)
        chance = torch.Generator().manual_seed(settings.seed)

        def loss(batch: InrBatch) -> Tensor:
            with torch.set_grad_enabled(fine_tune):  # what has no gradient stays as it is
                latents = self.encode(batch.stack, batch.siren, self._some_views(chance))
            labels = inrs.labels[batch.index].repeat_interleave(self.config.views)
            return nnf.cross_entropy(self._per_view(latents), labels, label_smoothing=SMOOTHING)

        return train(self, inrs, loss, settings, progress)

    def encode(self, stack: Stack, siren: Siren, views: Sequence[int] = range(VIEWS)) -> Float[Tensor, "N V C L L"]:
        """Latents `[N, V, C, L, L]` of stacked networks, for these of the six views."""
        latent = self.config.side // CELL
        cells = self.cells.unflatten(0, (VIEWS, -1))[list(views)]  # [V, L², place]
        with fast_products(self.training):
            content = self.content(self.encoder(stack, siren))[:, None, None]
            found = self.generate(torch.relu(self.place(cells) + content))  # [N, V, L², C]
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

    def _some_views(self, chance: torch.Generator) -> list[int]:
        return torch.randperm(VIEWS, generator=chance)[: self.config.views].tolist()

    def _per_view(self, latents: Tensor) -> Tensor:
        with fast_products(self.training):
            return self.recognise(latents.flatten(0, 1)).float()
