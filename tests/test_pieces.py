"""How many inputs a model takes at a time."""

from __future__ import annotations

import models
import pytest
import torch
from torch import Tensor, nn

from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals import doubts as doubts_module
from dnge_compress.signals import pieces
from dnge_compress.signals.divergence import outputs_of
from dnge_compress.signals.doubts import doubts
from dnge_compress.signals.inference import examples_in
from dnge_compress.signals.joined import joined
from dnge_compress.signals.pieces import positions_at_once


class Pooled(nn.Module):
    """Two convolutions, and a classifier of their mean; much is written behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 1), nn.Linear(7, 4)
        self.behind = nn.Linear(4, 1_000_000)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.head(self.second(self.first(x).relu()).mean((2, 3))))


def taken(model: nn.Module, readers: list[nn.Module], batches: list[Tensor], halves: int = 2) -> int:
    """How many examples fit."""
    return examples_in(joined(batches, positions_at_once(model, readers, batches, halves)))


def test_large_images_are_all_read_where_convolutions_and_pooled_rows_are_fitted() -> None:
    model, batches = Pooled(), [torch.zeros(10, 3, 128, 128)] * 4  # 40,960 small patches
    assert taken(model, [model.second, model.head], batches) == 40


def test_no_module_up_to_the_last_reader_writes_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = Pooled(), [torch.zeros(10, 3, 32, 32)] * 4
    monkeypatch.setattr(pieces, "MOST_WRITTEN", 12 * 7 * 32 * 32)
    assert taken(model, [model.second, model.head], batches) == 6
    assert taken(model, [model.second, model.head], batches, halves=1) == 12
    assert taken(model, [model.first], batches, halves=1) == 12 * 7 // 5


def test_a_linear_layer_gets_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(48, 6), nn.Linear(6, 5))
    monkeypatch.setattr(pieces, "MOST_ROWS", 60)
    assert taken(model, [model[1]], [torch.zeros(8, 10, 48)] * 2) == 6


def test_inputs_smaller_than_a_patch_are_all_read() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 5))
    assert taken(model, [model[1]], [torch.zeros(64, 5)] * 2) == 128


def test_how_sure_a_model_is_of_its_text_is_known_from_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make("bert_mlm")
    mask = (torch.arange(12) < torch.tensor([12, 5, 9, 2])[:, None]).long()
    ids = torch.randint(4, models.VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        p = outputs_of(model, batch).softmax(-1)
    share = float(-(p * p.log()).sum(-1).mean() / torch.tensor(p.shape[-1]).log())
    monkeypatch.setattr(pieces, "ANSWER_NUMBERS", 1)
    for unsure, told in ((share - 1e-4, 1), (share + 1e-4, 0)):
        monkeypatch.setattr(doubts_module, "UNSURE", unsure)
        assert len(doubts(model, [batch], Calibration(), "masked")) == told
