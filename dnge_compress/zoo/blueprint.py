"""What one network of the zoo is: architecture, data set and training, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dnge_compress.core.errors import DataError, UnknownNameError
from dnge_compress.zoo.corpora import TEXTS, VOCABULARY
from dnge_compress.zoo.images import IMAGES
from dnge_compress.zoo.networks import halvings

FAMILIES = ("mlp", "cnn", "resnet", "vit", "gpt2", "llama", "bert")
LANGUAGE = ("gpt2", "llama", "bert")
IMAGE = {"mnist": (1, 28), "cifar10": (3, 32)}  # channels, side in pixels

# Seconds of one core that a fully trained network may cost, and what one core does in a second (measured).
_SECONDS = {"mlp": 7, "cnn": 30, "resnet": 22, "vit": 30, "gpt2": 27, "llama": 27, "bert": 45}
_RATE = {"mlp": 90e9, "cnn": 90e9, "resnet": 130e9, "vit": 50e9, "gpt2": 60e9, "llama": 70e9, "bert": 65e9}
_OVERHEAD = {"mlp": 1e-3, "cnn": 4e-3, "resnet": 1e-2, "vit": 5e-3, "gpt2": 8e-3, "llama": 8e-3, "bert": 8e-3}
_MOST_STEPS = 4000
_WIDE_FROM = 16  # from this turn on, every third network of a family is wide, and gets twice the time

EARLY = (0.2, 0.5)  # shares of a run after which a network is kept as well, beside the last one


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """One network of the zoo; the fields after `stop` belong to some families only."""

    name: str
    family: str
    data: str
    widths: tuple[int, ...]  # hidden layers, convolutions, ResNet embedding and stages; (hidden,) of a transformer
    depth: int  # hidden layers, convolutions, residual blocks or transformer layers
    activation: str
    optimiser: str  # "adamw" or "sgd" (Nesterov momentum 0.9)
    lr: float
    weight_decay: float
    dropout: float
    seed: int
    batch_size: int
    steps: int  # length of the learning-rate schedule
    stop: int  # step at which training ends, below `steps` for a network stopped early
    preparation: int = 0  # BERT: steps of the neighbour task before the schedule begins
    layout: tuple[str, ...] = ()  # CNN: (shrink, head); ResNet: (layer type,)
    batch_norm: bool = False
    blocks: tuple[int, ...] = ()  # ResNet: blocks per stage
    ffn: int = 0
    heads: int = 0
    kv_heads: int = 0
    patch: int = 0  # pixels
    length: int = 0  # tokens per sequence
    tied: bool = False
    init: float = 0.02  # standard deviation of a transformer's initial weights

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UnknownNameError("zoo family", self.family, FAMILIES)
        known = TEXTS if self.family in LANGUAGE else IMAGES
        if self.data not in known:
            raise UnknownNameError(f"data set for {self.family}", self.data, known)
        legal = 0 < self.stop <= self.steps
        if self.heads:
            legal = legal and self.widths[0] % self.heads == 0 and self.heads % self.kv_heads == 0
        if self.patch:
            legal = legal and IMAGE[self.data][1] % self.patch == 0
        if not legal:
            raise DataError(f"blueprint {self.name} is impossible: check its steps, heads and patch size")

    def networks(self) -> list[Blueprint]:
        """The networks that one run gives, barely trained first: `<run>@20`, `<run>@50`, and itself."""
        early = [replace(self, name=f"{self.name}@{100 * s:.0f}", stop=max(1, int(s * self.stop))) for s in EARLY]
        return [*early, self]

    @property
    def is_language(self) -> bool:
        """Whether it reads tokens rather than images."""
        return self.family in LANGUAGE

    @property
    def mask_id(self) -> int:
        """Token id that hides a position from BERT: one past the data set's own vocabulary."""
        return VOCABULARY[self.data]

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Blueprint:
        """Inverse of `to_dict`, also after a round trip through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


def blueprints(count: int, seed: int) -> list[Blueprint]:
    """Draw `count` blueprints, round robin over the families; a longer list begins with the shorter one.

    Every fourth one of a family is stopped after 10 to 50 % of its schedule; later ones can be up to 256 wide.

    Example:
        >>> [b.family for b in blueprints(3, seed=0)]
        ['mlp', 'cnn', 'resnet']
    """
    return [_draw(index, seed) for index in range(count)]


def _draw(index: int, seed: int) -> Blueprint:
    rng = random.Random(f"{seed}/{index}")
    family, turn = FAMILIES[index % len(FAMILIES)], index // len(FAMILIES)
    wide = _is_wide(turn)
    fields = _FIELDS[family](rng, turn)
    fields |= dict(name=f"{family}-{index:03d}", family=family, seed=seed * 100_000 + index)
    seconds = _OVERHEAD[family] + 6 * fields["batch_size"] * _multiplications(fields) / _RATE[family]
    budget = _SECONDS[family] * (0.6 if fields["data"] == "mnist" and family != "mlp" else 1)  # digits are easy
    budget *= 2 if wide else 1
    steps = min(_MOST_STEPS, int(budget / seconds))
    if family == "bert":
        fields["preparation"] = min(400, int(0.4 * steps))
        steps -= fields["preparation"]
    early = turn % 4 == 3
    stop = max(10, int(steps * rng.uniform(0.1, 0.5))) if early else steps
    return Blueprint(**fields, steps=steps, stop=stop)


def _is_wide(turn: int) -> bool:
    return turn >= _WIDE_FROM and turn % 3 == 0


def _mlp(rng: random.Random, turn: int) -> dict[str, Any]:
    depth = rng.randint(2, 5)
    return dict(
        data="cifar10" if turn % 4 == 2 else "mnist",
        widths=tuple(rng.randrange(32, 257, 4) for _ in range(depth)),
        depth=depth,
        activation=rng.choice(["relu", "gelu", "tanh", "silu"]),
        dropout=rng.choice([0.0, 0.0, 0.1]),
        batch_size=128,
        **_optimiser(rng, sgd_lr=0.05),
    )


def _cnn(rng: random.Random, turn: int) -> dict[str, Any]:
    depth, batch_norm = rng.randint(3, 6), rng.random() < 0.6
    first, last = (rng.randrange(24, 49, 8), 193) if _is_wide(turn) else (rng.randrange(16, 33, 4), 97)
    return dict(
        data="mnist" if turn % 4 == 1 else "cifar10",
        widths=(first, *sorted(rng.randrange(first, last, 4) for _ in range(depth - 1))),
        depth=depth,
        activation=rng.choice(["relu", "gelu", "silu"]),
        dropout=0.0,
        batch_size=64,
        layout=(rng.choice(["stride", "pool"]), rng.choice(["average", "flatten"])),
        batch_norm=batch_norm,
        **_optimiser(rng, sgd_lr=0.1 if batch_norm else 0.03),
    )


def _resnet(rng: random.Random, turn: int) -> dict[str, Any]:
    stages = rng.randint(2, 3)
    blocks = tuple(rng.randint(1, 2) for _ in range(stages))
    layer = "basic" if turn % 2 == 0 else "bottleneck"
    embedding = rng.randrange(16, 33, 4)
    return dict(
        data="mnist" if turn % 5 == 4 else "cifar10",
        widths=(embedding, *sorted(rng.randrange(24, 257 if _is_wide(turn) else 97, 8) for _ in range(stages))),
        depth=sum(blocks),
        activation=rng.choice(["relu", "relu", "silu"]),
        dropout=0.0,
        batch_size=64,
        layout=(layer,),
        batch_norm=True,
        blocks=blocks,
        **_optimiser(rng, sgd_lr=0.1),
    )


def _vit(rng: random.Random, turn: int) -> dict[str, Any]:
    data = "mnist" if turn % 2 else "cifar10"
    return dict(
        data=data,
        patch=rng.choice([4, 7] if data == "mnist" else [4, 8, 8]),
        batch_size=32,
        dropout=0.0,
        **_transformer(rng, turn, widest=128, deepest=5, activations=["gelu", "gelu", "relu", "silu"]),
    )


def _gpt2(rng: random.Random, turn: int) -> dict[str, Any]:
    activations = ["gelu_new", "gelu_new", "relu", "silu"]
    return _text(rng, turn) | _transformer(rng, turn, widest=160, deepest=6, activations=activations) | dict(tied=True)


def _llama(rng: random.Random, turn: int) -> dict[str, Any]:
    grouped, single = turn % 2 == 1, turn % 8 in (1, 7)  # half share keys and values, half of these one head
    heads = (4, 6, 8) if grouped and not single else range(2, 9)
    activations = ["silu", "silu", "gelu"]
    fields = _text(rng, turn)
    fields |= _transformer(rng, turn, widest=160, deepest=6, activations=activations, among=heads)
    if grouped:
        fields["kv_heads"] = 1 if single else rng.choice([d for d in (2, 3, 4) if fields["heads"] % d == 0])
        fields["kv_heads"] = min(fields["kv_heads"], fields["heads"] // 2)
    return fields | dict(dropout=0.0, tied=rng.random() < 0.25)


def _bert(rng: random.Random, turn: int) -> dict[str, Any]:
    activations = ["gelu", "gelu", "relu", "silu"]
    fields = _text(rng, turn) | _transformer(rng, turn, widest=128, deepest=5, activations=activations)
    # With 15 % of the positions judged, BPE tokens are too rare for so short a training, bytes are not.
    fields |= dict(data="books-bpe1024" if turn % 8 == 1 else "books-bytes", tied=True, init=0.05)
    return fields | dict(lr=rng.choice([1.5e-3, 2e-3]), length=rng.choice([48, 64]))


def _text(rng: random.Random, turn: int) -> dict[str, Any]:
    return dict(
        data=TEXTS[turn % len(TEXTS)],
        length=rng.choice([48, 64, 96]),
        batch_size=rng.choice([8, 8, 12]),
        dropout=rng.choice([0.0, 0.0, 0.0, 0.05]),
    )


def _transformer(
    rng: random.Random,
    turn: int,
    *,
    widest: int,
    deepest: int,
    activations: list[str],
    among: Sequence[int] = range(2, 9),
) -> dict[str, Any]:
    narrowest = 48
    if _is_wide(turn):
        narrowest, widest, deepest = 160, 256, 4
    legal = [(h, d) for h in among for d in (8, 12, 16, 20, 24, 32, 40) if narrowest <= h * d <= widest]
    heads, head_width = rng.choice(legal)
    hidden = heads * head_width
    return dict(
        widths=(hidden,),
        depth=rng.randint(2, deepest),
        activation=rng.choice(activations),
        heads=heads,
        kv_heads=heads,
        ffn=int(hidden * rng.uniform(1.5, 4) / 8) * 8,
        init=rng.choice([0.02, 0.05]),
        optimiser="adamw",
        lr=rng.choice([1.5e-3, 2e-3, 3e-3]),
        weight_decay=rng.choice([0.0, 0.01, 0.1]),
    )


def _optimiser(rng: random.Random, *, sgd_lr: float) -> dict[str, Any]:
    if rng.random() < 0.35:
        return dict(optimiser="sgd", lr=sgd_lr * rng.choice([0.5, 1.0]), weight_decay=rng.choice([0.0, 5e-4]))
    return dict(optimiser="adamw", lr=rng.choice([1e-3, 2e-3]), weight_decay=rng.choice([0.0, 0.01, 0.1]))


_FIELDS: dict[str, Callable[[random.Random, int], dict[str, Any]]] = dict(
    mlp=_mlp, cnn=_cnn, resnet=_resnet, vit=_vit, gpt2=_gpt2, llama=_llama, bert=_bert
)


def _multiplications(fields: dict[str, Any]) -> float:
    """Multiplications of one example's forward pass, nearly."""
    family, widths, depth = fields["family"], fields["widths"], fields["depth"]
    if family in LANGUAGE or family == "vit":
        hidden, ffn = widths[0], fields["ffn"]
        layer = 4 * hidden * hidden + (3 if family == "llama" else 2) * hidden * ffn
        if family == "vit":
            return ((IMAGE[fields["data"]][1] // fields["patch"]) ** 2 + 1) * depth * layer
        return fields["length"] * (depth * layer + hidden * VOCABULARY[fields["data"]])
    channels, side = IMAGE[fields["data"]]
    pairs = list(zip((channels, *widths), widths, strict=False))
    if family == "mlp":
        return channels * side * side * widths[0] + sum(a * b for a, b in pairs[1:])
    if family == "cnn":
        early = fields["layout"][0] == "stride"  # a stride halves before the products, a pool after them
        halved = [sum(h < i + early for h in halvings(depth)) for i in range(depth)]
        return sum(9 * a * b * (side / 2**n) ** 2 for (a, b), n in zip(pairs, halved, strict=True))
    embedder = 49 * channels * widths[0] * (side / 2) ** 2
    per_block = 18 if fields["layout"] == ("basic",) else 2
    stages = zip(widths[1:], fields["blocks"], strict=True)
    return embedder + sum(per_block * n * w * w * (side / 4 / 2**i) ** 2 for i, (w, n) in enumerate(stages))
