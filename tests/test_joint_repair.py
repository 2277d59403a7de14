"""The repair that refits the matrices that compute kept neurons together with those that read them."""

from __future__ import annotations

import copy
import math
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as nnf
from test_repair import Values, context_of, damage, first_half_of
from tiny_architectures import ARCHITECTURES
from torch import Tensor, nn

from dnge_compress import compress
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.masking import MaskedModel
from dnge_compress.plans import trial
from dnge_compress.plans.trial import best_repair, repair_values
from dnge_compress.recipes.schema import Repair
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals import joint_fit as joint_fit_module
from dnge_compress.signals import layer_refit as layer_refit_module
from dnge_compress.signals.divergence import outputs_of
from dnge_compress.signals.fits import Fit
from dnge_compress.signals.joint_fit import Layer, joint_fit
from dnge_compress.signals.layer_refit import LayerRefit, Positions
from dnge_compress.signals.producers import formula_of, producers_of
from dnge_compress.signals.side_by_side import SideBySide
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.repair import apply_repair

EXAMPLES, TOKENS = 256, 16
JOINT = Repair(compensate="joint")
EPS = torch.finfo(torch.float32).eps
FEED_FORWARD = ("neuron",)


def many_texts() -> tuple[dict[str, Tensor], ...]:
    """Enough random positions for a fit of every weight of a tiny layer."""
    ids = torch.randint(4, models.VOCABULARY, (EXAMPLES, TOKENS), generator=torch.Generator().manual_seed(3))
    return tuple({"input_ids": part} for part in ids.split(EXAMPLES // 2))


def jointly(context: ScoringContext, applied: AppliedCuts) -> tuple[Values, Values]:
    """Side by side, and with the layers' own matrices."""
    one_shot = repair_values(context, applied, Repair())
    made = [SideBySide(context.model, context.signals, applied, one_shot, most_joint=most) for most in (0, math.inf)]
    return made[0].run(context.batches), made[1].run(context.batches)


# A gated layer, one with biases, a transposed weight, norms behind the sum; two matrices in one parameter.
@pytest.mark.parametrize("name", ["llama", "llama_bias", "gpt2", "bert_mlm", "phi3"])
def test_jointly_less_is_lost_than_side_by_side(name: str) -> None:
    if name in models.MODELS:
        model = models.make(name)
    else:
        torch.manual_seed(0)
        model = models.roughened(ARCHITECTURES[name].build()).eval()
    context = ScoringContext(graph=build_graph(model), model=model, data=many_texts())
    applied = first_half_of(context.graph, FEED_FORWARD)
    before = copy.deepcopy(model.state_dict())
    side, joint = jointly(context, applied)
    assert damage(context, applied, joint) < 0.95 * damage(context, applied, side)
    more = joint.keys() - side.keys()
    producers = {p.slot.param for c in applied.cuts for p in producers_of(model, applied, c.space)}
    assert producers and producers <= more and all(n in producers or n.endswith("bias") for n in more)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


# Two gated matrices, a transposed one, and a chain in which a matrix reads one cut space and computes another.
@pytest.mark.parametrize("name", ["llama_bias", "gpt2", "mlp"])
def test_the_cut_model_answers_as_the_masked_one_does_under_a_joint_repair(name: str) -> None:
    model = models.make(name)
    rows = torch.randn(2048, 9, generator=torch.Generator().manual_seed(2))
    context = context_of(name, model, data=(rows,) if name == "mlp" else many_texts())
    applied = first_half_of(context.graph, FEED_FORWARD)
    found = best_repair(context, applied, JOINT)
    side = best_repair(context, applied, Repair(compensate="lstsq"))
    assert found.damage == found.damages["joint fit"] < side.damages["side by side"]
    small = copy.deepcopy(model)
    with torch.no_grad():
        cut(small, applied)
        apply_repair(small, applied, found.values)
        batch = context.batches[0]
        masked = outputs_of(MaskedModel(model, applied, found.values), batch)
        torch.testing.assert_close(outputs_of(small, batch), masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("most_numbers", "every"), [(1 << 25, 1), (30_000, 3)])
def test_what_is_left_jointly_is_measured_on_examples_that_no_fit_has_seen(
    most_numbers: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Positions, int, int]] = []
    fit = LayerRefit.fit

    def told(layer: LayerRefit, consumer: Any, read: Tensor, target: Tensor, positions: Positions, rows: int) -> Any:
        def spy(layer: Layer, target: Tensor, *, seen: int, **options: Any) -> None:
            given.append((positions, seen, len(target)))

        monkeypatch.setattr("dnge_compress.signals.layer_refit.joint_fit", spy)
        return fit(layer, consumer, read, target, positions, rows)

    monkeypatch.setattr(LayerRefit, "fit", told)
    monkeypatch.setattr(layer_refit_module, "MOST_NUMBERS", most_numbers)
    context = context_of("llama", models.make("llama"), data=many_texts())
    applied = first_half_of(context.graph, FEED_FORWARD)
    best_repair(context, applied, JOINT)
    measured = sum(
        len(b["input_ids"]) for b in trial.share_of(context.batches, trial.MEASURE_SHARE, trial.MEASURE_ROWS)
    )
    assert given
    for positions, seen, rows in given:
        assert rows == -(-EXAMPLES * TOKENS // every)
        examples = positions.examples[::every]
        judged = {*examples[seen:].tolist()}
        assert {*range(measured)} <= judged <= {*range(EXAMPLES // 2)}
        assert not judged & {*examples[:seen].tolist()}


def test_a_joint_repair_is_a_recipe_and_survives_saving(tmp_path: Any) -> None:
    settings: dict[str, Any] = {"scorer": "obs", "tokens": 2048, "length": 16, "kinds": ["neuron"], "ratio": 0.2}
    small: Any = compress(models.make("gpt2"), compensate="joint", **settings)
    again: Any = compress(models.make("gpt2"), compensate="joint", **settings)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))
    assert any("joint fit" in note for note in small.dnge.plan.notes)
    small.save_pretrained(tmp_path)
    opened = type(small).from_pretrained(tmp_path).eval()
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids).logits, small(input_ids=ids).logits)


def layer_with(units: int, inputs: int, outputs: int, rows: int = 4000) -> tuple[Layer, Tensor, Tensor]:
    """A gated layer on random rows, its reading matrix, and what it writes under other weights near by."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, gate, up, read = draw(rows, inputs), draw(units, inputs), draw(units, inputs), draw(outputs, units)

    def formula(z: Any) -> Tensor:
        return nnf.silu(z[0]) * z[1]

    moved = [w + 0.3 * draw(*w.shape) for w in (gate, up, read)]
    target = formula([x @ moved[0].T, x @ moved[1].T]) @ moved[2].T
    return Layer(x, (x @ gate.T, x @ up.T), formula), read, target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_joint_fit_finds_most_of_what_refitting_one_side_cannot(dtype: torch.dtype) -> None:
    layer, read, target = layer_with(6, 5, 7)
    layer = Layer(layer.x.to(dtype), tuple(z.to(dtype) for z in layer.written), layer.formula)
    seen = 3000
    h = layer.activations()
    torch.testing.assert_close(h, layer.formula([z.float() for z in layer.written]))
    alone = torch.linalg.lstsq(h[:seen], target[:seen]).solution.T
    first = Fit(alone, torch.zeros(len(read)))
    found = joint_fit(layer, target, first=first, importance=torch.ones(len(read)), seen=seen, can_shift=False)
    assert found is not None and torch.equal(found.fit.added, first.added)
    left = (target - layer.activations(found.changes) @ found.fit.weight.T)[seen:].square().sum()
    assert left < 0.3 * (target - h @ alone.T)[seen:].square().sum()


def test_the_gradient_is_that_of_the_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, read, target = layer_with(6, 5, 7)
    run = joint_fit_module._Run(layer, target, Fit(read, torch.zeros(len(read))), torch.ones(len(read)), True)
    found = []
    for at_once in (len(target), 300):
        monkeypatch.setattr(joint_fit_module, "AT_ONCE", at_once)
        parts, rows = run.parts(), joint_fit_module._Part.of(range(1000, len(target)))
        error = run.error_with_gradient(parts, rows, 2.0)
        assert float(error) == pytest.approx(float(run.error(parts, rows)) / 2, rel=1e-5)
        found.append([part.grad for part in parts])
    step = 1e-3
    for at_once, in_pieces, part in zip(*found, parts, strict=True):
        torch.testing.assert_close(in_pieces, at_once, rtol=1e-4, atol=1e-6)
        moved = [p + step * (p is part) for p in parts], [p - step * (p is part) for p in parts]
        slope = (run.error(moved[0], rows) - run.error(moved[1], rows)) / (2 * step) / 2
        assert float(slope) == pytest.approx(float(in_pieces.sum()), rel=0.02)


def test_white_inputs_and_spreads_are_those_of_all_rows_at_once() -> None:
    rows = torch.randn(joint_fit_module.AT_ONCE + 700, 9, generator=torch.Generator().manual_seed(6)).bfloat16() + 2
    assert float(joint_fit_module._spread(rows)) == pytest.approx(float(rows.float().std()), rel=1e-4)
    root, rows = joint_fit_module._root(rows), rows.float()
    gram = rows.T @ rows / len(rows)
    gram += joint_fit_module.RIDGE * gram.diagonal().mean() * torch.eye(9)
    torch.testing.assert_close(root @ root.T, gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(joint_fit_module._whitened(rows, root) @ root.T, rows, rtol=1e-4, atol=1e-4)


def test_where_nothing_is_missing_a_joint_fit_changes_nothing() -> None:
    layer, read, _ = layer_with(6, 5, 7)
    target = layer.formula(layer.written) @ read.T
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(5))
    first = Fit(read, torch.zeros(len(read)))
    options: dict[str, Any] = {"first": first, "importance": torch.ones(len(read)), "seen": 3000}
    assert joint_fit(layer, target, **options, can_shift=True) is None
    few = options | {"seen": 30}  # positions to learn from, and noise to learn
    assert joint_fit(layer, target + noise, **few, can_shift=True) is None
    assert joint_fit(layer, target * torch.nan, **options, can_shift=True) is None


def test_a_round_that_goes_too_far_is_taken_part_of_the_way() -> None:
    """With few positions to learn from, a whole round fits their noise and still holds something of the truth."""
    layer, read, target = layer_with(6, 5, 7)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(5))
    target = target + 10 * noise
    first = Fit(read, torch.zeros(len(read)))
    options: dict[str, Any] = {"first": first, "importance": torch.ones(len(read)), "seen": 30}
    found = joint_fit(layer, target, **options, can_shift=False)
    assert found is not None

    def left(share: float) -> float:
        z = [w + share * layer.x @ c.T for w, c in zip(layer.written, found.changes, strict=True)]
        weight = read + share * (found.fit.weight - read)
        return float((target - layer.formula(z) @ weight.T)[30:].square().sum())

    assert left(1.0) < left(0.0)


@pytest.mark.parametrize("gate", [0, 1])
def test_formulas_are_told_by_their_numbers(gate: int) -> None:
    z = [torch.randn(50, 4, generator=torch.Generator().manual_seed(i)) for i in (6, 7)]
    other = [torch.randn(30, 4, generator=torch.Generator().manual_seed(i)) for i in (8, 9)]
    for activation in (nnf.silu, nnf.gelu, torch.relu, lambda t: nnf.gelu(t, approximate="tanh")):
        plain = formula_of(z[:1], activation(z[0]), EPS)
        gated = formula_of(z, activation(z[gate]) * z[1 - gate], EPS)
        assert plain is not None and torch.allclose(plain(other[:1]), activation(other[0]), atol=1e-5)
        assert gated is not None and torch.allclose(gated(other), activation(other[gate]) * other[1 - gate], atol=1e-5)
    assert formula_of(z[:1], torch.sin(z[0]), EPS) is None
    assert formula_of(z, z[0] + z[1], EPS) is None


class Overwritten(nn.Module):
    """Its activation overwrites what the matrix wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.head(x + self.down(self.act(self.up(x))))


def test_what_an_activation_writes_over_is_heard_before() -> None:
    """Negative numbers that a relu sets to zero in place are moved like any others."""
    torch.manual_seed(0)
    model, inputs = Overwritten().eval(), torch.randn(EXAMPLES, 6, generator=torch.Generator().manual_seed(1))
    graph = build_graph(model, inputs[:2])
    found = []
    for in_place in (True, False):
        model.act.inplace = in_place
        context = ScoringContext(graph=graph, model=model, data=(inputs,), example_inputs=inputs[:2])
        found.append(jointly(context, first_half_of(graph, FEED_FORWARD)))
    (side, joint), (_, wanted) = found
    assert joint.keys() - side.keys() == {"up.weight", "up.bias"}
    assert all(torch.equal(joint[n], wanted[n]) for n in wanted)


class Called(nn.Module):
    """A layer whose matrices are called in a way that few models have, once per example."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.up, self.act, self.down, self.head = nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 9), nn.Linear(9, 4)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        if self.way == "by keyword":
            return self.head(torch.relu(self.down(input=self.act(self.up(input=x)))))
        if self.way == "spread":  # what is computed once is read five times
            read = self.act(self.up(x))[:, None].expand(-1, 5, -1)
        else:  # in other shapes than it is read
            read = self.act(self.up(torch.stack([x, -x], 1).flatten(0, 1))).unflatten(0, (-1, 2))
        return self.head(torch.relu(self.down(read)).mean(1))


@pytest.mark.parametrize(("way", "moves"), [("by keyword", True), ("spread", False), ("reshaped", True)])
def test_a_layer_that_is_called_in_another_way_is_refitted_or_left_alone(way: str, moves: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Called(way).eval(), torch.randn(EXAMPLES, 6, generator=torch.Generator().manual_seed(1))
    graph = build_graph(model, inputs[:2])
    context = ScoringContext(graph=graph, model=model, data=(inputs,), example_inputs=inputs[:2])
    side, joint = jointly(context, first_half_of(graph, FEED_FORWARD))
    assert ("up.weight" in joint) is moves
    assert "up.weight" not in side
