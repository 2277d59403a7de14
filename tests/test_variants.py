"""The variants of the encoder that benchmarks measure: each trains, and is what its name says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from encoder_variants import WAVES, random_fourier, scoring
from inr_variants import RANDOM, FlatEncoder, Variant, VariantEncoder, lift
from test_fit import PARTS, example
from test_inr import SIREN, a_set, networks, rewrite

from dnge_compress.core.errors import DataError
from dnge_compress.encoder import DNGEncoder
from dnge_compress.encoder.messages import MAGNITUDE, RAW
from dnge_compress.inr import INR2JLS, InrEncoder, InrEncoderConfig, JlsConfig, TrainSettings
from dnge_compress.inr.siren import Siren, grid, spread_points
from dnge_compress.zoo.pretrain.fit import fit

SMALL = replace(RANDOM, hidden=8, embedding=12, signs="twins")


def variant(**choices: object) -> VariantEncoder:
    torch.manual_seed(0)
    return VariantEncoder(replace(SMALL, **choices), 3).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        scoring(directions="none"),
        scoring(directions="forward"),
        scoring(order="static"),
        scoring(order="shuffled"),
        scoring(signals=False),
        scoring(streams=(RAW,)),
        scoring(streams=(RAW, MAGNITUDE + WAVES)),
    ],
)
def test_every_variant_that_scores_trains(make: Callable[[], DNGEncoder]) -> None:
    assert set(fit([example("llama"), example("bert")], PARTS[:2], steps=2, seed=0, make=make)) == {"all", "bert"}


def test_an_encoder_without_signals_sees_none() -> None:
    encoder, item = scoring(signals=False)(), example("llama")
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    other = {k: v + 1 for k, v in item.features.items()}
    with torch.no_grad():
        a, b = (encoder(item.graph, item.weights, x, item.layer_logs) for x in (item.features, other))
    assert all(torch.equal(a.spaces[n], b.spaces[n]) for n in a.spaces)


@pytest.mark.parametrize("choices", [{}, {"order": "static"}, {"directions": "both"}, {"update": "gru"},
                                     {"update": "mlp"}, {"signs": "canonical"}])  # fmt: skip
def test_an_embedding_does_not_change_when_neurons_are_permuted_or_negated(choices: dict[str, object]) -> None:
    stack, read = networks(), variant(**choices)
    there = read(stack, SIREN)
    for seed in range(3):
        other = read(rewrite(stack, SIREN, torch.Generator().manual_seed(seed)), SIREN)
        torch.testing.assert_close(other, there, rtol=0, atol=1e-8)
    assert (there[0] - there[1]).abs().max() > 1e-3  # it isn't constant


def test_with_free_signs_an_embedding_still_does_not_change_when_neurons_are_permuted() -> None:
    stack, read = networks(), variant(signs="free")
    permuted = rewrite(stack, SIREN, torch.Generator().manual_seed(0), negated=False)
    negated = rewrite(stack, SIREN, torch.Generator().manual_seed(0))
    torch.testing.assert_close(read(permuted, SIREN), read(stack, SIREN), rtol=0, atol=1e-8)
    assert (read(negated, SIREN) - read(stack, SIREN)).abs().max() > 1e-3


def test_neurons_beside_their_negatives_are_the_same_function() -> None:
    stack, points = networks(), grid(5).double()
    lifted, siren = lift(stack, SIREN)
    torch.testing.assert_close(siren.render(lifted, points), SIREN.render(stack, points))


@pytest.mark.parametrize("order", ["shuffled", "static"])
@pytest.mark.parametrize("width", [7, 32])  # 32: the draw is the order of inference itself
def test_another_order_of_the_layers_is_another_embedding(order: str, width: int) -> None:
    siren = Siren((2, width, width, 3))
    stack = networks(siren=siren)
    own, other = (variant(order=o)(stack, siren) for o in ("inference", order))
    assert (own - other).abs().max() > 1e-3


@pytest.mark.parametrize("signs", ["canonical", "twins", "free"])
def test_a_functional_variant_begins_as_the_inference_of_its_network(signs: str) -> None:
    stack, read = networks(), VariantEncoder(Variant(signs=signs, hidden=16, embedding=8), 3).double()
    read.network.passes[0].update.from_input.bias.data *= 100
    shown = SIREN.render(stack, spread_points(16).double()).mT.sin()
    torch.testing.assert_close(read.states(stack, SIREN)["output"], shown, rtol=0, atol=1e-10)


def test_the_product_is_the_variant_without_changes() -> None:
    torch.manual_seed(0)
    product = InrEncoder(InrEncoderConfig(outputs=3, hidden=16, output_hidden=16, embedding=12)).double()
    torch.manual_seed(0)
    same = VariantEncoder(Variant(hidden=16, output_hidden=16, embedding=12), 3).double()
    assert torch.equal(product(networks(), SIREN), same(networks(), SIREN))


@pytest.mark.parametrize("choices", [{"streams": (random_fourier(16),), "is_relative": False},
                                     {"has_learned_waves": True}])  # fmt: skip
def test_other_bases_read_networks_too(choices: dict[str, object]) -> None:
    read = variant(**choices)
    found = read(networks(), SIREN)
    assert (found[0] - found[1]).abs().max() > 1e-3
    found[:, :3].square().sum().backward()  # of all, the norm at the end is constant
    learned = [p for name, p in read.named_parameters() if name.startswith("learned")]
    assert len(learned) == (8 if "has_learned_waves" in choices else 0)
    assert all(p.grad.abs().sum() > 1e-6 for p in learned)


def test_there_is_no_odd_number_of_sines_and_cosines() -> None:
    with pytest.raises(ValueError, match="7 features"):
        random_fourier(7)


def test_a_latent_space_can_be_read_by_a_flat_encoder() -> None:
    torch.manual_seed(0)
    jls = INR2JLS(FlatEncoder(SIREN, 8), JlsConfig(side=8, channels=4, hidden=16, place=4, classes=3, views=6))
    inrs, other = a_set(6), Siren((2, 7, 5, 1))
    losses = jls.fit(inrs, torch.rand(6, 3, 8, 8), TrainSettings(steps=30, batch=6, learning_rate=1e-2))
    assert losses[-1] < losses[0]
    assert jls.classify(inrs.stack, inrs.siren).shape == (6, 3)
    with pytest.raises(DataError, match="not of the shape"):
        FlatEncoder(SIREN, 8)(networks(2, other), other)
