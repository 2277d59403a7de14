"""Modules that strangers bring: what of them may go, and that the rest computes what the whole did without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from dnge_compress import compress, load, save
from dnge_compress.core.errors import PlanError, UnsupportedModelError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.graph.types import Cut, ModelGraph
from dnge_compress.surgery.cut import cut


class PaddedConv(nn.Conv2d):
    """A conv that holds a module for its padding, as those of EfficientNets do."""

    def __init__(self, src: int, dst: int, size: int, **options: Any) -> None:
        super().__init__(src, dst, size, **options)
        self.padding_module = nn.ZeroPad2d(size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return nnf.conv2d(self.padding_module(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Bottleneck(nn.Module):
    """A residual block whose middle conv has groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(6, 24, 1),
            nn.Conv2d(24, 36, 3, padding=1, groups=groups),
            nn.Conv2d(36, 6, 1),
        )
        self.norm = nn.BatchNorm2d(36)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(self.norm(self.b(self.a(x).relu())).relu())


class Recurrent(nn.Module):
    """A language model; `by_hand` it makes its first states from an attribute of its own."""

    def __init__(self, kind: str = "LSTM", by_hand: bool = False, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 7)
        self.hidden, self.levels, self.by_hand = 10, options.get("num_layers", 1), by_hand
        self.rnn = getattr(nn, kind)(7, 10, batch_first=True, **options)
        self.head = nn.Linear(20 if options.get("bidirectional") else 10, 23)

    def forward(self, ids: Tensor) -> Tensor:
        first = torch.zeros(self.levels, len(ids), self.hidden) if self.by_hand else None
        states = (first, first) if self.by_hand else None
        return self.head(self.rnn(self.embed(ids), states)[0])


class Translator(nn.Module):
    """A decoder that starts from the last states of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = nn.LSTM(5, 10), nn.LSTM(5, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(x.flip(0), self.encoder(x)[1])[0])


class LastState(nn.Module):
    """A regressor on the last hidden state of the upper of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(5, 12, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.transpose(0, 1))[1][-1])


class Attention(nn.Module):
    """Attention by hand: `view` splits queries, keys and values into heads, of which keys may have fewer."""

    def __init__(
        self, heads: int = 3, keys: int = 3, size: int = 4, fused: bool = False, literal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.keys, self.size, self.fused, self.literal = heads, keys, size, fused, literal
        if fused:
            self.qkv = nn.Linear(15, (heads + 2 * keys) * size)
        else:
            self.q, self.k, self.v = (nn.Linear(15, n * size) for n in (heads, keys, keys))
        self.out = nn.Linear(heads * size, 15)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        sizes = [self.heads * self.size, self.keys * self.size, self.keys * self.size]
        q, k, v = self.qkv(x).split(sizes, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        counts = (-1, -1, -1) if self.literal else (self.heads, self.keys, self.keys)
        q, k, v = (y.view(n, t, h, 4).transpose(1, 2) for y, h in zip((q, k, v), counts, strict=True))
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
        y = nnf.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


class Residual(nn.Module):
    """A module around which its inputs pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Block(nn.Module):
    """Attention and a feed-forward layer around a residual stream."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(15), nn.LayerNorm(15), attention
        self.up, self.down, self.head = nn.Linear(15, 18), nn.Linear(18, 15), nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.down(self.up(self.norm2(x)).relu())).mean(1))


def pooled(*layers: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True)
    return nn.Sequential(nn.Linear(5, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 4))


def generator() -> nn.Module:
    return nn.Sequential(
        *(nn.ConvTranspose2d(3, 10, 4, 2, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU()),
        *(nn.ConvTranspose2d(10, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2, 2)),
    )


def padded() -> nn.Module:
    convs = (PaddedConv(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), PaddedConv(8, 8, 3, groups=8), PaddedConv(8, 6, 1))
    return pooled(*convs, width=6)


def images() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def rows() -> Tensor:
    return torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))


def stream() -> Tensor:
    return torch.randn(3, 6, 15, generator=torch.Generator().manual_seed(0))


def words() -> Tensor:
    return torch.randint(23, (3, 6), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Case:
    """A module, its inputs, and the spaces that must be found with their units."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    spaces: dict[str, int]


CASES = {
    "convs that hold a module": Case(padded, images, {"0": 8, "4": 6}),
    "a PReLU with a slope for each channel": Case(
        lambda: pooled(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.PReLU(), width=6),
        images,
        {"0": 8, "2": 6},
    ),
    "group norms": Case(
        lambda: pooled(nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 6, 3), width=6),
        images,
        {"0": 4, "3": 6},
    ),
    "norms of single images without weights": Case(
        lambda: pooled(
            nn.Conv2d(3, 12, 3), nn.InstanceNorm2d(12), nn.Conv2d(12, 8, 3), nn.GroupNorm(4, 8, affine=False), width=8
        ),
        images,
        {"0": 12, "2": 4},
    ),
    "a conv of many groups": Case(
        lambda: pooled(nn.Conv2d(3, 6, 1), Bottleneck(12), width=6), images, {"0": 6, "1.a": 12}
    ),
    "a conv of few groups": Case(
        lambda: pooled(nn.Conv2d(3, 6, 1), Bottleneck(2), width=6), images, {"0": 6, "1.a": 12, "1.b": 18}
    ),
    "attention in two blocks": Case(
        lambda: nn.Sequential(Residual(Attention(fused=True)), Residual(Attention(fused=True)), Block(Attention())),
        stream,
        {"0.inner.qkv": 3, "1.inner.qkv": 3, "2.attention.q": 3, "2.up": 18},
    ),
    "transposed convs": Case(generator, images, {"0": 10, "3": 6}),
    "an LSTM": Case(Recurrent, words, {"rnn.ih_l0": 10}),
    "a GRU": Case(lambda: Recurrent("GRU"), words, {"rnn.ih_l0": 10}),
    "a plain recurrent network": Case(lambda: Recurrent("RNN"), words, {"rnn.ih_l0": 10}),
    "two levels whose first states are made by hand": Case(
        lambda: Recurrent(by_hand=True, num_layers=2), words, {"rnn.ih_l0": 10, "rnn.ih_l1": 10}
    ),
    "two directions": Case(
        lambda: Recurrent("GRU", bidirectional=True), words, {"rnn.ih_l0": 10, "rnn.ih_l0_reverse": 10}
    ),
    "a decoder that starts where an encoder ends": Case(Translator, rows, {"encoder.ih_l0": 10}),
    "the last state of two levels": Case(LastState, rows, {"rnn.ih_l0": 12}),
    "an encoder of torch's own": Case(encoder, rows, {"1.layers.0.linear1": 20, "1.layers.1.linear1": 20}),
    "attention whose heads an attribute counts": Case(lambda: Block(Attention()), stream, {"attention.q": 3, "up": 18}),
    "attention whose size of heads is written down": Case(
        lambda: Block(Attention(literal=True)), stream, {"attention.q": 3, "up": 18}
    ),
    "attention with fewer keys": Case(lambda: Block(Attention(4, 2)), stream, {"attention.q": 2, "up": 18}),
    "attention from one matrix": Case(lambda: Block(Attention(fused=True)), stream, {"attention.qkv": 3, "up": 18}),
    "attention with fewer keys from one matrix": Case(
        lambda: Block(Attention(4, 2, fused=True)), stream, {"attention.qkv": 2, "up": 18}
    ),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The module with every tensor far from zero and one, in eval mode."""
    torch.manual_seed(0)
    net = make().eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.uniform_(0.5, 1.5) if name.endswith("var") else tensor.add_(0.3 * torch.randn(tensor.shape))
    return net


def read(graph: ModelGraph) -> dict[str, int]:
    return {s.name: s.units for s in graph.of_kind("neuron", "channel", "head")}


def halved(graph: ModelGraph) -> AppliedCuts:
    """Every second unit of every space, and the last, stays."""
    return AppliedCuts(graph, tuple(Cut(n, tuple(range(u - 1, -1, -2))[::-1]) for n, u in read(graph).items()))


@pytest.mark.parametrize("what", CASES)
def test_what_may_go_is_found(what: str) -> None:
    case = CASES[what]
    assert read(build_graph(seeded(case.make), case.inputs())) == case.spaces


@pytest.mark.parametrize("what", CASES)
@torch.no_grad()
def test_the_cut_network_is_the_one_with_those_units_zeroed(what: str) -> None:
    case = CASES[what]
    net, inputs = seeded(case.make), case.inputs()
    applied = halved(build_graph(net, inputs))
    small = copy.deepcopy(net)
    cut(small, applied)
    masked = MaskedModel(net, applied)(inputs)
    assert not torch.allclose(masked, net(inputs), atol=1e-3)
    assert torch.allclose(small(inputs), masked, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) == applied.price(
        {n: 1.0 for n, _ in net.named_parameters()}, {n: tuple(p.shape) for n, p in net.named_parameters()}
    )
    small.train()(inputs)  # sizes that are only looked at in training hold as well


@pytest.mark.parametrize("what", CASES)
@torch.no_grad()
def test_a_compressed_module_is_saved_and_comes_back(what: str, tmp_path: Path) -> None:
    case = CASES[what]
    net, inputs = seeded(case.make), case.inputs()
    small = compress(net, ratio=0.2, example_inputs=inputs, tokens=256)
    save(small, tmp_path / "out")
    back = load(tmp_path / "out", model=seeded(case.make))
    assert torch.equal(small(inputs), back(inputs))


@torch.no_grad()
def test_an_lstm_loses_the_rows_of_a_unit_in_every_gate() -> None:
    net = seeded(lambda: Recurrent(num_layers=2))
    graph = build_graph(net, words())
    keep = [0, 2, 3, 7, 9]
    small = copy.deepcopy(net)
    cut(small, AppliedCuts(graph, (Cut("rnn.ih_l0", tuple(keep)), Cut("rnn.ih_l1", (1, 2, 5, 6, 8)))))
    rows = torch.tensor([gate * 10 + u for gate in range(4) for u in keep])
    assert torch.equal(small.rnn.weight_hh_l0, net.rnn.weight_hh_l0[rows][:, keep])
    assert torch.equal(small.rnn.bias_ih_l0, net.rnn.bias_ih_l0[rows])
    assert small.rnn.weight_ih_l1.shape == (20, 5)
    assert small.rnn.hidden_size == 5


def test_levels_of_a_recurrent_module_keep_equally_many_units() -> None:
    graph = build_graph(seeded(lambda: Recurrent(num_layers=2)), words())
    with pytest.raises(PlanError, match=r"rnn.ih_l0, rnn.ih_l1 keep 2 to 10 units, but one module has one size"):
        AppliedCuts(graph, (Cut("rnn.ih_l0", (1, 2)),))


@torch.no_grad()
def test_heads_take_their_number_from_the_attribute_that_counts_them() -> None:
    net = seeded(lambda: Block(Attention(4, 2)))
    graph = build_graph(net, stream())
    assert set(graph.attributes) == {("attention.q", "attention", "heads", 2), ("attention.q", "attention", "keys", 1)}
    small = copy.deepcopy(net)
    cut(small, AppliedCuts(graph, (Cut("attention.q", (1,)),)))
    assert (small.attention.heads, small.attention.keys, small.attention.size) == (2, 1, 4)
    assert torch.equal(small.attention.k.weight, net.attention.k.weight[4:])
    assert torch.equal(small.attention.out.weight, net.attention.out.weight[:, 8:])


class FixedWidth(Attention):
    """Puts its heads together to the width of the residual stream, as nanoGPT does."""

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (y(x).view(n, t, self.heads, c // self.heads).transpose(1, 2) for y in (self.q, self.k, self.v))
        return self.out(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))


def test_attention_that_writes_its_width_down_keeps_its_heads_and_says_so() -> None:
    graph = build_graph(seeded(lambda: Block(FixedWidth(3, 3, 5))), stream())
    assert read(graph) == {"up": 18}
    assert "behind 'attention.out' is attention" in dict(graph.reasons)["head"]


def test_torchs_own_attention_keeps_its_heads_and_says_so() -> None:
    graph = build_graph(seeded(encoder), rows())
    assert "embed_dim / num_heads" in dict(graph.reasons)["head"]


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_weight_that_is_computed_is_named_with_what_to_do(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(15, 12), nn.ReLU(), wrap(nn.Linear(12, 11)), nn.ReLU(), nn.Linear(11, 4))
    with pytest.raises(UnsupportedModelError, match=r"the weight of '2' is computed at each call.*remove_parametriz"):
        build_graph(net, stream())


def test_a_branch_that_is_not_taken_is_named_in_the_plan() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.taken, self.other = nn.Linear(15, 12), nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x).relu()
            return self.other(y) if x.shape[1] > 100 else self.taken(y)

    small = compress(Branches(), ratio=0.2, example_inputs=stream(), tokens=256)
    assert any("example inputs never reach 'other'" in note for note in small.dnge.plan.notes)


def test_modules_whose_weights_are_used_by_others_count_as_reached() -> None:
    assert build_graph(seeded(encoder), rows()).notes == ()  # attention reads out_proj's weight without calling it


@pytest.mark.parametrize(("last", "is_scores"), [(nn.Identity(), True), (nn.Sigmoid(), False), (nn.Softmax(-1), False)])
def test_what_damage_is_measured_by_is_said(last: nn.Module, is_scores: bool) -> None:
    net = nn.Sequential(nn.Linear(5, 14), nn.ReLU(), nn.Linear(14, 4), last)
    small = compress(net, ratio=0.2, example_inputs=rows(), tokens=256)
    verb = "is taken" if is_scores else "is not taken"
    assert any(f"the output, [3, 6, 4], {verb} for scores of classes" in note for note in small.dnge.plan.notes)
