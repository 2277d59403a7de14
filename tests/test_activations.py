"""What a module reads at each position, against torch's own unfolding, and several batches as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dnge_compress.signals.activations import counted_positions, rows_at, rows_written, windows
from dnge_compress.signals.joined import joined

PLANE = {"plain": {}, "stride": {"stride": (2, 3)}, "dilation": {"dilation": (1, 2)}, "padding": {"padding": (2, 1)}}
PLANE["all"] = {"stride": (3, 2), "dilation": (2, 1), "padding": (1, 2)}
LINE = {"plain": {}, "all": {"stride": 2, "dilation": 3, "padding": 2}}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def chosen(count: int) -> Tensor:
    """Some positions, not in order, one of them twice."""
    picks = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 2]
    return torch.cat([picks, picks[:1]])


@pytest.mark.parametrize("options", PLANE.values(), ids=PLANE)
def test_rows_of_a_plane_are_torchs_unfolded_columns(options: dict[str, Any]) -> None:
    conv, x = nn.Conv2d(3, 5, (3, 2), **options), noise(2, 3, 9, 11)
    columns = nnf.unfold(x, (3, 2), conv.dilation, conv.padding, conv.stride).transpose(1, 2).flatten(0, 1)
    at = chosen(len(columns))
    assert torch.equal(rows_at(windows(conv, x), 2, at), columns[at])


@pytest.mark.parametrize("options", LINE.values(), ids=LINE)
def test_windows_of_a_line_are_torchs_unfolded_columns(options: dict[str, Any]) -> None:
    conv, x = nn.Conv1d(3, 5, 4, **options), noise(2, 3, 17)
    sizes = [(1, 4), (1, *conv.dilation), (0, *conv.padding), (1, *conv.stride)]
    columns = nnf.unfold(x[:, :, None], *sizes).transpose(1, 2)  # [N, L, C · kernel]
    seen = windows(conv, x)
    assert seen.shape == (2, columns.shape[1], 3, 4)
    assert torch.equal(seen.flatten(2), columns)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(3, 5, 4, padding="same"), (2, 3, 9)),
        (nn.Conv2d(3, 5, (2, 3), padding="same", dilation=(1, 2)), (2, 3, 6, 7)),
        (nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 6, 7)),
        (nn.Conv2d(3, 5, 3, padding=1, stride=2, padding_mode="circular"), (2, 3, 6, 7)),
        (nn.Conv3d(2, 5, (1, 2, 3), stride=(2, 1, 1), dilation=(1, 3, 1), padding=1), (2, 2, 4, 5, 6)),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@torch.no_grad()
def test_rows_times_the_weight_are_what_a_conv_writes(conv: Any, shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    written = rows_written(conv, conv(x))
    rows = rows_at(windows(conv, x), len(conv.kernel_size), torch.arange(len(written)))
    torch.testing.assert_close(rows @ conv.weight.flatten(1).T + conv.bias, written, atol=1e-5, rtol=1e-4)


def test_positions_that_count_are_no_padding() -> None:
    mask, device = torch.tensor([[True, True, False], [True, False, False]]), torch.device("cpu")
    assert counted_positions(mask, 6, device).tolist() == [0, 1, 3]
    assert counted_positions(None, 3, device).tolist() == [0, 1, 2]
    assert counted_positions(mask, 2, device).tolist() == [0, 1]  # one vector for each text


def text(rows: int, length: int, first: int = 10) -> dict[str, Tensor]:
    ids = torch.arange(first, first + rows * length).view(rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.ones_like(ids)}


def test_texts_are_padded_to_the_longest_and_the_mask_says_so() -> None:
    found: Any = joined([text(2, 3), text(1, 5, 50)])
    assert found["input_ids"].tolist() == [[10, 11, 12, 0, 0], [13, 14, 15, 0, 0], [50, 51, 52, 53, 54]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert found["token_type_ids"].shape == (3, 5)


def test_batches_keep_their_kind() -> None:
    x, y = noise(2, 3, 4), noise(2, 5)
    assert torch.equal(joined([x, -x]), torch.cat([x, -x]))  # type: ignore[arg-type]
    pair: Any = joined([(x, y), (-x, -y)])
    assert isinstance(pair, tuple) and [t.shape for t in pair] == [(4, 3, 4), (4, 5)]
    assert torch.equal(pair[1], torch.cat([y, -y]))
    named: Any = joined([{"left": x, "right": y}, {"left": -x, "right": -y}])
    assert named.keys() == {"left", "right"} and torch.equal(named["left"], pair[0])


def test_of_inputs_that_cannot_be_joined_those_with_most_positions_are_taken() -> None:
    small, large = torch.zeros(9, 4, dtype=torch.long), torch.ones(3, 16, dtype=torch.long)
    assert torch.equal(joined([small, large]), large)  # type: ignore[arg-type]
    assert joined([small, large, small]).shape == (18, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", [120, 128, 500, 1280, 10_000])
def test_under_a_limit_batches_give_equal_shares(limit: int) -> None:
    batches = [torch.full((20, 16), i) for i in range(4)]  # 1,280 positions
    found: Any = joined(batches, limit)
    shares = [int((found[:, 0] == i).sum()) for i in range(4)]
    assert limit - 16 < 16 * sum(shares) <= limit or sum(shares) == 80
    assert max(shares) - min(shares) <= 1


def test_one_example_at_least_is_left() -> None:
    assert joined([torch.zeros(8, 16, dtype=torch.long)], 1).shape == (1, 16)  # type: ignore[union-attr]


def test_an_image_counts_as_many_positions_as_it_has_small_patches() -> None:
    images = noise(16, 3, 32, 32)  # of 64 patches
    assert len(joined([images], 4 * 64)) == 4
