"""Who predicts a network's accuracy from its weights: the DNG encoder, and regressors on tables of statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from accuracy_networks import CLASSES, FEATURES, Herd, Subjects
from accuracy_probes import PROBED
from encoder_variants import ORDERS
from scipy.stats import kendalltau
from torch import Tensor, nn

from dnge_compress.encoder.network import NetworkEncoder

DECAY = 0.98  # of the running mean of the reader's weights
LOOK_EVERY = 3  # epochs
JUDGED = 256  # networks at a time


@dataclass(frozen=True)
class ReaderSettings:
    """An encoder (or none), the table that the head reads as well (or none), and how both are trained."""

    features: int = 0  # of a node, as the encoder reads them; 0 is no encoder
    table: str = ""
    order: str = "inference"
    epochs: int = 60
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.1
    hidden: int = 64
    seed: int = 0


ENCODER = FEATURES
PROBING = FEATURES + PROBED
HIDDEN, EMBEDDING, GAIN = 48, 96, 1.5
PERCEPTRON = ReaderSettings(batch=64)


class Reader(nn.Module):
    """Scores of networks: a perceptron on their embedding, on their rows of a table, or both."""

    def __init__(self, settings: ReaderSettings, columns: int) -> None:
        super().__init__()
        h = settings.hidden
        self.encoder = network_encoder(settings.features, order=settings.order) if settings.features else None
        self.features = settings.features
        size = (EMBEDDING if self.encoder else 0) + columns
        self.head = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(size, h), nn.SiLU())
        if self.encoder is None:
            self.head += nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(h, h), nn.SiLU())
        self.head.append(nn.Linear(h, 1))

    def forward(self, herds: Sequence[Herd], table: Tensor) -> Tensor:
        """Scores `[N]` of all networks of all herds, in their order."""
        parts = [table]
        if self.encoder is not None:
            parts.append(torch.cat([self._embeddings(h) for h in herds]))
        return self.head(torch.cat(parts, 1)).squeeze(1)

    def _embeddings(self, herd: Herd) -> Tensor:
        features = {k: f[..., : self.features] for k, f in herd.features.items()}  # without probes, only the first ones
        return self.encoder.embed(herd.graph, herd.stack, features)


def network_encoder(
    features: int, hidden: int = HIDDEN, embedding: int = EMBEDDING, order: str = "inference"
) -> NetworkEncoder:
    """Forward and backward passes from random initial values, over networks whose classes are known apart."""
    passes = [
        ORDERS[order](hidden, features + (hidden if back else 0), nodes={CLASSES: 10}, backward=back, is_rooted=True)
        for back in (False, True)
    ]
    for one in passes:
        nn.init.constant_(one.gain, GAIN)
    return NetworkEncoder(passes, embedding=embedding)


def fitted_scores(subjects: Subjects, settings: ReaderSettings, fit: Tensor, choose: Tensor) -> Tensor:
    """Scores `[N]` of all subjects, by the reader as it is after the epoch that is best on `choose`."""
    subjects = standardised(subjects, fit)
    torch.manual_seed(1000 * settings.seed)
    table = subjects.tables[settings.table] if settings.table else torch.zeros(len(subjects), 0)
    reader = Reader(settings, table.shape[1])
    mean = copy.deepcopy(reader)
    optimiser = torch.optim.AdamW(reader.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(fit) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, steps, pct_start=0.1)
    best, state = -2.0, mean.state_dict()
    wanted = ranks(subjects.accuracy, subjects.accuracy[fit])
    for epoch in range(settings.epochs):
        for batch in _batches(subjects, fit, settings.batch):
            herds = _taken(subjects, batch)
            order = torch.cat([h.places for h in herds])
            loss = _loss(reader(herds, table[order]), wanted[order])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                decay = min(DECAY, (schedule.last_epoch + 1) / (schedule.last_epoch + 10))
                for kept, now in zip(mean.parameters(), reader.parameters(), strict=True):
                    kept.lerp_(now, 1 - decay)
        if epoch % LOOK_EVERY == LOOK_EVERY - 1 or epoch == settings.epochs - 1:
            reached = agreement(_scores(mean, subjects, table, choose), subjects, choose)
            if reached > best:
                best, state = reached, copy.deepcopy(mean.state_dict())
    mean.load_state_dict(state)
    return _scores(mean, subjects, table, torch.arange(len(subjects)))


def _batches(subjects: Subjects, fit: Tensor, size: int) -> Iterator[Tensor]:
    """The networks at `fit` in a new order. Networks of one shape are read at once: where a run has its own shape, its
    networks stay together, which is several times as fast."""
    if len(subjects.herds) == 1:
        yield from fit[torch.randperm(len(fit))].split(size)
        return
    runs = subjects.run[fit]
    together = [fit[runs == r] for r in runs.unique()[torch.randperm(len(runs.unique()))]]
    yield from (torch.cat(together[i : i + max(1, size // 3)]) for i in range(0, len(together), max(1, size // 3)))


def agreement(scores: Tensor, subjects: Subjects, who: Tensor) -> float:
    """Kendall's tau-b of scores and accuracies of `who`; of several data sets, mean of `inside` and of all at once."""
    whole = tau(scores, subjects.accuracy[who])
    return whole if len(subjects.data.unique()) == 1 else (whole + inside(scores, subjects, who)) / 2


def inside(scores: Tensor, subjects: Subjects, who: Tensor) -> float:
    """Kendall's tau-b within each data set, mean over them."""
    data = subjects.data[who]
    found = [tau(scores[data == d], subjects.accuracy[who][data == d]) for d in data.unique()]
    return sum(found) / len(found)


def tau(a: Tensor, b: Tensor) -> float:
    """Kendall's tau-b; 0 where a constant has no ranks."""
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("scores or accuracies are not finite numbers")
    found = float(kendalltau(a.numpy(), b.numpy()).statistic)
    return 0.0 if found != found else found


def ranks(values: Tensor, among: Tensor) -> Tensor:
    """Share of `among` that is below each value, 0..1."""
    ordered = among.sort().values
    return (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)) / (2 * len(among))


def _scores(reader: Reader, subjects: Subjects, table: Tensor, who: Tensor) -> Tensor:
    found = torch.zeros(len(subjects))
    with torch.no_grad():
        for part in who.split(JUDGED):
            herds = _taken(subjects, part)
            order = torch.cat([h.places for h in herds])
            found[order] = reader.eval()(herds, table[order])
    return found[who]


def _taken(subjects: Subjects, who: Tensor) -> list[Herd]:
    """The herds of the networks at `who` only, in the order of `who` as far as one herd goes."""
    found = []
    for h in subjects.herds:
        i = torch.isin(h.places, who).nonzero().squeeze(1)
        if len(i):
            stack, features = ({k: v[i] for k, v in part.items()} for part in (h.stack, h.features))
            found.append(Herd(h.graph, stack, features, h.places[i]))
    return found


def standardised(subjects: Subjects, fit: Tensor) -> Subjects:
    """Features and tables with mean 0 and deviation 1 over the networks at `fit`."""
    units = torch.cat([f.flatten(0, 1) for h in _taken(subjects, fit) for f in h.features.values()])
    shift, scale = units.mean(0), units.std(0).clamp_min(1e-6)
    herds = (replace(h, features={k: (f - shift) / scale for k, f in h.features.items()}) for h in subjects.herds)
    tables = {k: (t - t[fit].mean(0)) / t[fit].std(0).clamp_min(1e-6) for k, t in subjects.tables.items()}
    return replace(subjects, herds=tuple(herds), tables=tables)


def _loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of the accuracies' ranks, and of who is better in every pair."""
    value = nn.functional.binary_cross_entropy_with_logits(scores, wanted)
    better = wanted[:, None] > wanted
    pairs = nn.functional.softplus(scores - scores[:, None])[better].sum() / better.sum().clamp_min(1)
    return value + pairs
