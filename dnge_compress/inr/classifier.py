"""Classes of pictures from their networks: an encoder and a small head."""

from __future__ import annotations

import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

from dnge_compress.core.precision import fast_products
from dnge_compress.core.progress import Progress, silent
from dnge_compress.inr.encoders import InrReader
from dnge_compress.inr.learning import InrBatch, TrainSettings, refuse_labels, share_right, train
from dnge_compress.inr.sets import InrSet
from dnge_compress.inr.siren import Siren, Stack

SMOOTHING = 0.05  # of the labels


class InrClassifier(nn.Module):
    """ "DNG only": embeddings of the networks, and a perceptron over them."""

    def __init__(self, encoder: InrReader, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = encoder
        size, self.classes = encoder.embedding, classes
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(size, size), nn.SiLU(), nn.Dropout(dropout), nn.Linear(size, classes)
        )
        self.eval()

    def forward(self, stack: Stack, siren: Siren) -> Float[Tensor, "N classes"]:
        """Logits `[N, classes]`."""
        with fast_products(self.training):
            return self.head(self.encoder(stack, siren)).float()

    def fit(self, inrs: InrSet, settings: TrainSettings, *, progress: Progress = silent) -> list[float]:
        """Learn the labels of a set; returns the loss of every step. Raises DataError."""
        refuse_labels(inrs, self.classes)

        def loss(batch: InrBatch) -> Tensor:
            labels = inrs.labels[batch.index]
            return nnf.cross_entropy(self(batch.stack, batch.siren), labels, label_smoothing=SMOOTHING)

        return train(self, inrs, loss, settings, progress)

    def accuracy(self, inrs: InrSet) -> float:
        """Share of the set's networks whose class is found."""
        return share_right(self, inrs)
