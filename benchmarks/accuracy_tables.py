"""Regressors on tables of numbers, tuned as carefully as the encoder: trees and perceptrons, chosen on validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from accuracy_networks import Subjects
from accuracy_readers import PERCEPTRON, agreement, fitted_scores, ranks
from sklearn.base import RegressorMixin
from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor
from torch import Tensor

TREES, PERCEPTRONS = "trees", "perceptron"


def table_scores(subjects: Subjects, table: str, kind: str, fit: Tensor, choose: Tensor, *, seed: int) -> Tensor:
    """Scores `[N]` of all subjects from a table's columns, by the regressor of this kind that is best on `choose`."""
    found = _trees if kind == TREES else _perceptrons
    tried = list(found(subjects, table, fit, choose, seed))
    return max(tried, key=lambda scores: agreement(scores[choose], subjects, choose))


def _trees(subjects: Subjects, table: str, fit: Tensor, choose: Tensor, seed: int) -> Iterator[Tensor]:
    x = subjects.tables[table].numpy()
    among = subjects.accuracy[fit]
    for target in (subjects.accuracy, ranks(subjects.accuracy, among)):
        for model in _forests(seed):
            model.fit(x[fit], target[fit].numpy())
            yield torch.from_numpy(model.predict(x)).float()


def _forests(seed: int) -> Iterator[RegressorMixin]:
    for depth, rate, share in product((2, 4, 6), (0.03, 0.1), (0.3, 1.0)):
        yield GradientBoostingRegressor(n_estimators=300, max_depth=depth, learning_rate=rate, subsample=0.6,
                                        max_features=share, random_state=seed)  # fmt: skip
    for share, leaf in product((0.3, 1.0), (1, 3)):
        yield ExtraTreesRegressor(300, max_features=share, min_samples_leaf=leaf, random_state=seed)


def _perceptrons(subjects: Subjects, table: str, fit: Tensor, choose: Tensor, seed: int) -> Iterator[Tensor]:
    for decay, dropout, hidden in product((1e-2, 1e-1, 1.0), (0.1, 0.4), (64, 256)):
        settings = replace(PERCEPTRON, table=table, weight_decay=decay, dropout=dropout, hidden=hidden, seed=seed)
        yield fitted_scores(subjects, settings, fit, choose)
