"""INR2JLS on a frozen encoder: readings made once, the spatial skip, and the head that learns on them."""

from __future__ import annotations

import copy
import resource
from dataclasses import replace

import pytest
import torch
from inr_variants import Variant, VariantEncoder
from renderings import Rendering, rendered
from torch import Tensor

from dnge_compress.core.errors import DataError, DngeError
from dnge_compress.inr import INR2JLS, HeadConfig, InrEncoder, InrEncoderConfig, JlsConfig
from dnge_compress.inr.classifier import SMOOTHING
from dnge_compress.inr.head import Halving, LatentHead
from dnge_compress.inr.learning import TrainSettings
from dnge_compress.inr.readings import read_all
from dnge_compress.inr.sets import InrSet
from dnge_compress.inr.siren import Siren
from dnge_compress.inr.views import Moves, six_views

SIREN = Siren((2, 7, 5, 3))


def a_set(count: int = 6) -> InrSet:
    return InrSet(
        siren=SIREN,
        stack=SIREN.initial(count, torch.Generator().manual_seed(1)),
        labels=torch.arange(count) % 3,
        image=torch.arange(count),
        psnr=torch.zeros(count),
        about={},
    )


def a_jls(*, hidden: int = 16, skip: bool = True, mixup: float = 0.0, copies: int = 3, seed: int = 0) -> INR2JLS:
    """Images of 8 × 8, latents of 2 × 2, states of 4 × 4 points."""
    torch.manual_seed(seed)
    encoder = InrEncoder(InrEncoderConfig(outputs=3, hidden=hidden, output_hidden=16, embedding=12))
    head = HeadConfig(width=16, dropout=0.0, last_dropout=0.0, mixup=mixup)
    return INR2JLS(
        encoder, JlsConfig(side=8, channels=4, hidden=16, place=4, classes=3, head=head, skip=skip, copies=copies)
    )


def small_pictures(count: int = 6) -> Tensor:
    return torch.nn.functional.interpolate(torch.rand(count, 3, 2, 2) * 2 - 1, size=8)


def test_readings_are_what_the_encoder_says_of_the_networks_and_of_their_moved_copies() -> None:
    inrs, jls = a_set(), a_jls()
    found = read_all(jls.encoder, inrs, jitter="cifar10", copies=3, seed=4)
    assert len(found) == 18 and found.network.tolist() == [*range(6)] * 3
    index = torch.tensor([2, 8, 15])  # as it is, and moved twice
    moved = found.moves.select(index).of_networks({k: v[found.network[index]] for k, v in inrs.stack.items()}, SIREN)
    wanted, said = jls.encoder.read(moved, SIREN), found.select(index)
    torch.testing.assert_close(said.embedding, wanted.embedding, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(said.picture, wanted.picture, rtol=1e-3, atol=2e-3)
    as_it_is = jls.encoder.read({k: v[2:3] for k, v in inrs.stack.items()}, SIREN)
    torch.testing.assert_close(said.embedding[:1], as_it_is.embedding, rtol=1e-3, atol=2e-3)
    assert (said.embedding[1] - jls.encoder(inrs.stack, SIREN)[2]).abs().max() > 0.05


def test_pictures_that_are_not_moved_are_read_once() -> None:
    inrs, jls = a_set(), a_jls()
    assert len(read_all(jls.encoder, inrs, copies=3)) == 6


def test_moves_of_several_draws_are_selected_and_joined() -> None:
    still = Moves.none(2, 3)
    assert torch.equal(still.matrix, torch.eye(2).expand(2, 2, 2)) and not still.shift.any()
    both = Moves.joined([still, replace(still, shift=still.shift + 1)])
    assert both.select(torch.tensor([3, 0])).shift.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("jitter", ["none", "cifar10"])
def test_a_frozen_encoder_is_asked_once_and_learned_from_as_if_it_were_asked_at_every_step(jitter, monkeypatch) -> None:
    inrs, jls = a_set(), a_jls()
    jls.encoder.requires_grad_(False)
    before = copy.deepcopy(jls.encoder.state_dict())
    asked = []
    true_read = jls.encoder.read
    monkeypatch.setattr(jls.encoder, "read", lambda *given: asked.append(len(given[0]["0.bias"])) or true_read(*given))
    losses = jls.fit(inrs, small_pictures(), TrainSettings(steps=200, batch=6, learning_rate=1e-2, jitter=jitter))
    assert asked == ([6] if jitter == "none" else [6] * 3)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(torch.equal(value, before[name]) for name, value in jls.encoder.state_dict().items())


def test_a_frozen_reading_learns_the_classes_and_leaves_the_latents_as_they_are(monkeypatch) -> None:
    inrs, jls = a_set(), a_jls()
    there = jls.encode(inrs.stack, SIREN)
    monkeypatch.setattr(jls, "_read", lambda *given: pytest.fail("asked again"))
    losses = jls.fit_classifier(inrs, TrainSettings(steps=150, batch=6, learning_rate=1e-2))
    monkeypatch.undo()
    assert losses[-1] < 0.6 * losses[0] and jls.accuracy(inrs) == 1.0
    assert torch.equal(jls.encode(inrs.stack, SIREN), there)


def test_a_cell_hears_the_points_that_lie_in_it_turned_with_its_view() -> None:
    inrs, jls = a_set(), a_jls()
    reading = jls.encoder.read(inrs.stack, SIREN)
    picture = reading.picture.clone()
    picture[:, :, 0, 3] += 1  # a point of the cell in the first row, last column
    changed = (jls.latents(replace(reading, picture=picture)) - jls.latents(reading)).abs().sum((0, 2)) > 0
    where = torch.zeros(1, 1, 2, 2)
    where[..., 0, 1] = 1
    assert torch.equal(changed.float(), six_views(where)[0, :, 0])


def test_a_picture_of_the_encoder_is_what_its_network_shows() -> None:
    inrs, jls = a_set(), a_jls(hidden=36)
    jls.encoder.network.passes[0].update.from_input.bias.data *= 100  # shuts the gates
    shown = inrs.siren.images(inrs.stack, 6)
    torch.testing.assert_close(jls.encoder.read(inrs.stack, SIREN).picture, shown.sin(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("hidden", "told"), [(9, "are 3 × 3 points, and a skip to 2 × 2 cells"), (10, "no grid")])
def test_a_skip_that_does_not_fit_is_told(hidden: int, told: str) -> None:
    with pytest.raises(DataError, match=told):
        a_jls(hidden=hidden)
    assert a_jls(hidden=hidden, skip=False).own is None


def test_mixed_networks_are_learned_with_mixed_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    head = a_jls(mixup=0.4).recognise.train()
    given, asked = torch.randn(6, 4, 2, 2), []
    monkeypatch.setattr(head, "forward", lambda mixed: asked.append(mixed) or torch.eye(3).repeat(2, 1))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(0)
    loss = head.missed(given, labels)
    torch.manual_seed(0)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(6)
    torch.testing.assert_close(asked[0], share * given + (1 - share) * given[other])
    both = [
        torch.nn.functional.cross_entropy(torch.eye(3).repeat(2, 1), which, label_smoothing=SMOOTHING)
        for which in (labels, labels[other])
    ]
    torch.testing.assert_close(loss, share * both[0] + (1 - share) * both[1])
    assert both[0] != both[1]


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_a_head_reads_latents_of_any_side(side: int) -> None:
    head = LatentHead(4, 3, HeadConfig(width=8)).eval()
    assert head(torch.zeros(2, 4, side, side)).shape == (2, 3)


@pytest.mark.parametrize("height", [1, 2, 5, 8])
def test_a_halving_convolution_is_the_convolution(height: int) -> None:
    torch.manual_seed(0)
    halving, pixels = Halving(3, 5), torch.randn(2, 3, height, 4, requires_grad=True)
    plain = torch.nn.functional.conv2d(pixels, halving.weight, halving.bias, stride=2, padding=1)
    torch.testing.assert_close(halving(pixels), plain)
    turned = torch.randn_like(plain)
    own, wanted = (torch.autograd.grad(found, (halving.weight, pixels), turned) for found in (halving(pixels), plain))
    torch.testing.assert_close(own, wanted)


def test_in_bfloat16_places_that_see_padding_alone_learn_nothing() -> None:
    halving = Halving(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        halving(torch.randn(3, 4, 1, 1)).sum().backward()
    assert halving.weight.grad is not None
    around = halving.weight.grad.clone()
    assert around[..., 1, 1].abs().sum() > 0
    around[..., 1, 1] = 0
    assert not around.any()


def test_a_fair_static_graph_begins_as_inference_too() -> None:
    """Rounds that hear messages alone come to the states of the walk; rounds that add their memory don't."""
    inrs = a_set()
    encoders = []
    for order in ("inference", "fair static", "static"):
        torch.manual_seed(0)
        encoders.append(VariantEncoder(Variant(order=order, hidden=16, output_hidden=16, embedding=12), 3))
    walk, fair, unfair = (one.read(inrs.stack, SIREN).picture for one in encoders)
    torch.testing.assert_close(fair, walk, rtol=0, atol=1e-6)
    assert (unfair - walk).abs().max() > 1e-3


def test_latents_are_tuned_under_a_frozen_encoder_on_networks_that_are_moved_anew() -> None:
    inrs, jls = a_set(), a_jls()
    jls.encoder.requires_grad_(False)
    before = {name: p.clone() for name, p in jls.named_parameters()}
    asked: list[Tensor] = []
    read = jls.encoder.read
    jls.encoder.read = lambda stack, siren: asked.append(stack["0.weight"]) or read(stack, siren)
    jls.fit_classifier(inrs, TrainSettings(steps=2, batch=6, jitter="cifar10"), fine_tune=True)
    changed = {name.split(".")[0] for name, p in jls.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"cells", "place", "content", "generate", "own", "recognise"}
    norms = [weights.flatten(1).norm(dim=1).sort().values for weights in asked]
    assert len(norms) == 2 and (norms[0] - norms[1]).abs().max() > 1e-3  # not the same moves twice


def test_a_static_graph_that_hears_messages_alone_is_the_dynamic_graph_whatever_was_learned() -> None:
    """And one that remembers is it too until it has learned to."""
    inrs = a_set()
    sizes = {"hidden": 16, "output_hidden": 16, "embedding": 12}
    walk, fair, remembering = (VariantEncoder(Variant(order=order, **sizes), 3)
                               for order in ("inference", "fair static", "remembering"))  # fmt: skip
    for values in walk.parameters():
        torch.nn.init.normal_(values, std=0.3)
    fair.load_state_dict(walk.state_dict())
    remembering.load_state_dict(walk.state_dict(), strict=False)
    wanted = walk(inrs.stack, SIREN)
    torch.testing.assert_close(fair(inrs.stack, SIREN), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(remembering(inrs.stack, SIREN), wanted, rtol=0, atol=1e-5)
    torch.nn.init.constant_(remembering.network.passes[0].remembered, 0.5)
    assert (remembering(inrs.stack, SIREN) - wanted).abs().max() > 1e-3


def test_the_upper_bound_sees_the_pictures_of_its_networks_in_all_views() -> None:
    inrs = a_set()
    bound = rendered(Rendering(8, 3), JlsConfig(side=8, classes=3, head=HeadConfig(width=8)))
    latents = bound.encode(inrs.stack, SIREN)
    shown = torch.nn.functional.pixel_shuffle(latents, 4)
    torch.testing.assert_close(shown, six_views(inrs.siren.images(inrs.stack, 8)))
    assert bound.classify(inrs.stack, SIREN).shape == (6, 3)


def test_every_network_may_have_views_of_its_own() -> None:
    inrs, jls = a_set(), a_jls()
    reading, views = jls.encoder.read(inrs.stack, SIREN), torch.tensor([[0, 5], [3, 1], [2, 4], [1, 0], [5, 5], [4, 2]])
    everything = jls.latents(reading)
    torch.testing.assert_close(jls.latents(reading, views), everything[torch.arange(6)[:, None], views])


def test_tuning_draws_the_views_of_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    jls, seen = a_jls(), []
    own = jls.latents
    monkeypatch.setattr(jls, "latents", lambda reading, views: seen.append(views) or own(reading, views))
    jls.fit_classifier(a_set(60), TrainSettings(steps=1, batch=60), fine_tune=True)
    assert len(seen[0].unique(dim=0)) > 1 and set(seen[0].flatten().tolist()) == set(range(6))


def test_readings_and_fine_tuning_exclude_each_other() -> None:
    inrs, jls = a_set(), a_jls()
    readings = read_all(jls.encoder, inrs)
    with pytest.raises(DataError, match="give one of the two"):
        jls.fit_classifier(inrs, TrainSettings(steps=1), fine_tune=True, readings=readings)


def test_readings_of_other_networks_or_by_another_encoder_are_refused() -> None:
    inrs, jls = a_set(), a_jls()
    good = read_all(jls.encoder, inrs, jitter="cifar10", copies=2)
    strangers = replace(inrs, stack=SIREN.initial(6, torch.Generator().manual_seed(2)))
    kept = good.kept
    wrong = {
        "are of 6 networks, and the set has 5": (inrs.select(slice(5)), good),
        "embeddings of 11 numbers, and the encoder's have 12": (
            inrs,
            replace(good, kept=replace(kept, embedding=kept.embedding[:, :11])),
        ),
        r"have pictures None, and a skip needs \[3, 4, 4\]": (inrs, replace(good, kept=replace(kept, picture=None))),
        "are of other networks": (strangers, good),
        "or by another encoder": (inrs, read_all(a_jls(seed=1).encoder, inrs)),
    }
    settings = TrainSettings(steps=1, batch=6)
    for told, (networks, readings) in wrong.items():
        with pytest.raises(DataError, match=told):
            jls.fit(networks, small_pictures(), settings, readings=readings)
        with pytest.raises(DataError, match=told):
            jls.fit_classifier(networks, settings, readings=readings)
    jls.fit(inrs, small_pictures(), settings, readings=good)
    jls.fit_classifier(inrs, settings, readings=good)


def test_a_disk_without_room_for_readings_is_told() -> None:
    inrs, jls = a_set(), a_jls()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(DngeError, match="readings of networks need room in"):
            read_all(jls.encoder, inrs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_readings_of_nothing_or_in_no_known_way_are_refused() -> None:
    encoder, inrs = a_jls().encoder, a_set()
    for told, call in {
        "copies is 0": lambda: read_all(encoder, inrs, copies=0),
        "unknown jitter 'x'": lambda: read_all(encoder, inrs, jitter="x"),
        "set of networks is empty": lambda: read_all(encoder, inrs.select(slice(0, 0))),
    }.items():
        with pytest.raises(DngeError, match=told):
            call()


def test_networks_without_labels_have_no_accuracy() -> None:
    inrs = a_set()
    with pytest.raises(DataError, match="no label"):
        a_jls().accuracy(replace(inrs, labels=torch.full_like(inrs.labels, -1)))
    with pytest.raises(DataError, match="label 50"):
        a_jls().accuracy(replace(inrs, labels=torch.full_like(inrs.labels, 50)))
