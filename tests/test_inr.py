"""Implicit networks: fitting, sets, exact symmetries and moves, and the encoders that read them."""

from __future__ import annotations

import copy
import io
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dnge_compress.core.errors import CheckpointError, DataError, DngeError, UnsupportedModelError, WeightError
from dnge_compress.core.precision import fast_products, has_products_of
from dnge_compress.inr import INR2JLS, InrClassifier, InrEncoder, InrEncoderConfig, JlsConfig, gather
from dnge_compress.inr.chain import read_chain, widths_of
from dnge_compress.inr.fitting import FitSettings, fit
from dnge_compress.inr.head import HeadConfig
from dnge_compress.inr.learning import TrainSettings
from dnge_compress.inr.sets import InrSet, about, build_set
from dnge_compress.inr.siren import Siren, grid, spread_points
from dnge_compress.inr.symmetry import canonical, move, recolour, wrapped_phases
from dnge_compress.inr.views import JITTERS, Moves, six_views
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import images

SIREN = Siren((2, 7, 5, 3))


def networks(count: int = 4, siren: Siren = SIREN, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    stack = siren.initial(count, torch.Generator().manual_seed(0))
    return {name: (3 * values).to(dtype) for name, values in stack.items()}  # far from initial, with phases beyond π


def encoder(siren: Siren = SIREN, *, hidden: int = 16, probes: int = 0) -> InrEncoder:
    torch.manual_seed(0)
    config = InrEncoderConfig(outputs=siren.widths[-1], hidden=hidden, output_hidden=16, embedding=12, probes=probes)
    return InrEncoder(config).double().eval()


def rewrite(
    stack: dict[str, Tensor], siren: Siren, generator: torch.Generator, *, negated: bool = True
) -> dict[str, Tensor]:
    """Networks of the same function, their hidden neurons permuted and negated at random."""
    found = dict(stack)
    for layer in range(siren.depth - 1):
        width = siren.widths[layer + 1]
        order = torch.randperm(width, generator=generator)
        sign = torch.randint(2, (width,), generator=generator) * 2.0 - 1 if negated else torch.ones(width)
        sign = sign.to(found[f"{layer}.weight"].dtype)
        found[f"{layer}.weight"] = found[f"{layer}.weight"][:, order] * sign[:, None]
        found[f"{layer}.bias"] = found[f"{layer}.bias"][:, order] * sign
        found[f"{layer + 1}.weight"] = found[f"{layer + 1}.weight"][:, :, order] * sign
    return found


def a_set(count: int = 8, siren: Siren = SIREN) -> InrSet:
    stack = siren.initial(count, torch.Generator().manual_seed(1))
    return InrSet(
        siren=siren,
        stack=stack,
        labels=torch.arange(count) % 3,
        image=torch.arange(count),
        psnr=torch.zeros(count),
        about={},
    )


@pytest.fixture
def data_root(tmp_path: Path) -> DataRoot:
    """A data_root whose MNIST has seven digits of noise."""
    x = np.random.default_rng(0).integers(0, 255, (7, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=np.arange(7), x_test=x, y_test=np.arange(7))
    return DataRoot.find(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("shape", [(7, 20, 20), (5, 28, 28)])
def test_digits_of_another_size_or_number_than_their_labels_are_damaged(data_root: DataRoot, shape: Any) -> None:
    y = np.arange(7)
    np.savez(data_root.data / "mnist.npz", x_train=np.zeros(shape, np.uint8), y_train=y, x_test=y, y_test=y)
    with pytest.raises(DataError, match=r"mnist\.npz' is no MNIST as Keras ships it, or damaged"):
        images("mnist", "train", data_root=data_root)


def test_photographs_are_those_of_the_folder_and_not_of_another(tmp_path: Path) -> None:
    def folder(name: str, shade: int) -> DataRoot:
        (tmp_path / name).mkdir()
        picture = io.BytesIO()
        Image.new("RGB", (32, 32), (shade, shade, shade)).save(picture, "PNG")
        rows = {"split": ["train"], "jpeg": [picture.getvalue()], "label": [1]}
        parquet.write_table(pyarrow.table(rows), tmp_path / name / "cifar10.parquet")
        return DataRoot.find(tmp_path / name, tmp_path / "cache")

    for name, shade in (("dark", 9), ("light", 200)):
        assert int(images("cifar10", "train", data_root=folder(name, shade)).pixels.max()) == shade
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cifar10.parquet is missing from"):
        images("cifar10", "train", data_root=DataRoot.find(tmp_path / "empty", tmp_path / "cache"))
    (tmp_path / "empty" / "cifar10.parquet").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"cifar10\.parquet' is no Parquet file, or damaged"):
        images("cifar10", "train", data_root=DataRoot.find(tmp_path / "empty", tmp_path / "cache"))
    parquet.write_table(pyarrow.table({"split": ["train"]}), tmp_path / "empty" / "cifar10.parquet")
    with pytest.raises(DataError, match="has no column jpeg, label"):
        images("cifar10", "train", data_root=DataRoot.find(tmp_path / "empty", tmp_path / "cache"))


def test_rendering_is_what_plain_torch_computes() -> None:
    stack = networks()
    layers = [nn.Linear(i, o).double() for i, o in ((2, 7), (7, 5), (5, 3))]
    for i, layer in enumerate(layers):
        layer.weight.data, layer.bias.data = stack[f"{i}.weight"][2], stack[f"{i}.bias"][2]
    x = grid(6).double()
    wanted = layers[2](torch.sin(30 * layers[1](torch.sin(30 * layers[0](x)))))
    torch.testing.assert_close(SIREN.render(stack, x)[2], wanted)


def test_rates_of_wide_matrices_fall_as_maximal_update_parametrisation_says() -> None:
    settings = FitSettings(learning_rate=0.1, base_width=32)
    rates = {
        name: settings.rate_of(name, torch.zeros(1, *shape)) for name, shape in Siren((2, 64, 128, 1)).shapes().items()
    }
    assert rates == {"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.05, "1.bias": 0.1, "2.weight": 0.025, "2.bias": 0.1}
    wide, images = Siren((2, 64, 64, 1)), torch.zeros(1, 1, 8, 8)
    first = wide.initial(1, torch.Generator().manual_seed(0))
    for base, largest in ((0, 1.0), (32, 0.5)):  # Adam's first step is the rate, nearly
        found, _ = fit(images, wide, FitSettings(steps=1, base_width=base), 0)
        moved = (found["1.weight"] - first["1.weight"]).abs().max() / (found["1.bias"] - first["1.bias"]).abs().max()
        assert float(moved) == pytest.approx(largest, rel=0.05)


def test_a_fit_comes_close_to_its_images_and_repeats() -> None:
    images = torch.stack([torch.linspace(-1, 1, 8).expand(8, 8), torch.linspace(1, -1, 8).expand(8, 8).T])[:, None]
    siren, settings = Siren((2, 16, 16, 1)), FitSettings(steps=150, stride=2)
    stack, psnr = fit(images, siren, settings, seed=3)
    again, _ = fit(images, siren, settings, seed=3)
    assert psnr.min() > 30
    assert all(torch.equal(stack[name], again[name]) for name in stack)
    assert not torch.equal(stack["0.weight"][0], stack["0.weight"][1])  # every network has an initialisation of its own


@pytest.mark.parametrize(("change", "least"), [(wrapped_phases, -torch.pi / 2), (canonical, 0.0)])
def test_symmetries_leave_the_function_as_it_is(change, least: float) -> None:
    stack, points = networks(), grid(5).double()
    changed = change(stack, SIREN)
    torch.testing.assert_close(SIREN.render(changed, points), SIREN.render(stack, points))
    phases = torch.cat([changed[f"{i}.bias"].flatten() * 30 for i in (0, 1)])
    assert phases.min() >= least - 1e-9 and phases.max() <= torch.pi / 2 + 1e-9


def test_moved_networks_show_moved_pictures_and_recoloured_ones_other_colours() -> None:
    stack, points = networks(), grid(5).double()
    generator = torch.Generator().manual_seed(0)
    a, t = torch.randn(4, 2, 2, generator=generator).double(), torch.randn(4, 2, generator=generator).double()
    moved = SIREN.render(move(stack, a, t), points)
    for i in range(4):
        torch.testing.assert_close(moved[i], SIREN.render(stack, points @ a[i].T + t[i])[i])
    c, d = torch.randn(4, 3, 3, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
    wanted = SIREN.render(stack, points) @ c.mT + d[:, None]
    torch.testing.assert_close(SIREN.render(recolour(stack, SIREN, c, d), points), wanted)


def test_images_move_as_their_networks_do() -> None:
    siren = Siren((2, 6, 6, 3), omega=2.0)  # smooth, so that interpolation is close
    stack = siren.initial(3, torch.Generator().manual_seed(0))
    moves = Moves.draw(JITTERS["cifar10"], 3, 3, torch.Generator().manual_seed(5))
    still = siren.render(stack, grid(32)).mT.unflatten(-1, (32, 32))
    moved = siren.render(moves.of_networks(stack, siren), grid(32)).mT.unflatten(-1, (32, 32))
    inside = (..., slice(9, -9), slice(9, -9))
    assert (moves.of_images(still) - moved)[inside].abs().max() < 0.02 * still.std()


def test_six_views_are_the_image_its_flips_and_its_turns() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    views = six_views(image)[0, :, 0]
    assert torch.equal(six_views(image, [4, 1]), six_views(image)[:, [4, 1]])
    assert len({tuple(v.flatten().tolist()) for v in views}) == 6
    assert torch.equal(views[1], image[0, 0].flip(1)) and torch.equal(views[5], image[0, 0].flip(0, 1))
    assert views[3][0].tolist() == [3, 7, 11, 15]  # turned left: the last column is on top
    assert views[4][0].tolist() == [12, 8, 4, 0]


@pytest.mark.parametrize("probes", [0, 9])
def test_an_embedding_does_not_change_when_neurons_are_permuted_negated_or_shifted(probes: int) -> None:
    stack, read = networks(), encoder(probes=probes)
    there = read(stack, SIREN)
    other = rewrite(stack, SIREN, torch.Generator().manual_seed(0))
    other["0.bias"][:, 1] += torch.pi / 30  # half a turn of one neuron
    other["1.weight"][:, :, 1] *= -1
    torch.testing.assert_close(read(other, SIREN), there, rtol=0, atol=1e-8)
    assert (there[0] - there[1]).abs().max() > 1e-3


def widened(stack: dict[str, Tensor], siren: Siren) -> tuple[dict[str, Tensor], Siren]:
    """Networks of the same function with every hidden neuron twice, at half weight."""
    found = dict(stack)
    for layer in range(siren.depth - 1):
        found[f"{layer}.weight"] = torch.cat([found[f"{layer}.weight"]] * 2, -2)
        found[f"{layer}.bias"] = torch.cat([found[f"{layer}.bias"]] * 2, -1)
        found[f"{layer + 1}.weight"] = torch.cat([found[f"{layer + 1}.weight"] / 2] * 2, -1)
    return found, Siren((siren.widths[0], *(2 * w for w in siren.widths[1:-1]), siren.widths[-1]), siren.omega)


def test_networks_are_read_alike_where_every_neuron_stands_twice() -> None:
    stack, read = networks(), encoder()
    assert (read(*widened(stack, SIREN)) - read(stack, SIREN)).abs().max() < 1e-8


@pytest.mark.parametrize("hidden", [16, 10])
def test_message_passing_is_initialised_as_the_inference_of_its_network(hidden: int) -> None:
    """With its gates wholly shut, outputs' states are the sines of the colours at the points of the input nodes."""
    stack, read = networks(), encoder(hidden=hidden)
    read.network.passes[0].update.from_input.bias.data *= 100
    shown = SIREN.render(stack, spread_points(hidden).double())  # [N, P, C]
    torch.testing.assert_close(read.states(stack, SIREN)["output"], shown.mT.sin(), rtol=0, atol=1e-10)


def test_the_backbone_learns_at_its_share_of_the_rate() -> None:
    inrs, classifier = a_set(6), InrClassifier(encoder().float(), classes=3)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    classifier.fit(inrs, TrainSettings(steps=3, batch=6, weight_decay=0, backbone_lr_scale=0.1))
    change = {name: float((p.detach() - before[name]).abs().max()) for name, p in classifier.named_parameters()}
    backbone, head = change["encoder.network.passes.0.mix.bias"], change["head.1.bias"]
    assert backbone / head == pytest.approx(0.1, rel=0.2)  # Adam's first steps are of the rate's size


def test_the_backbone_can_stay_as_it_was_initialised() -> None:
    inrs, read = a_set(6), encoder().float()
    before = copy.deepcopy(read)
    InrClassifier(read, classes=3).fit(inrs, TrainSettings(steps=3, batch=6, backbone_lr_scale=0))
    changed = {
        name
        for (name, p), old in zip(read.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(p, old)
    }
    assert changed and not any(name.startswith("network.passes") for name in changed)


def test_the_same_seed_teaches_the_same_whatever_was_drawn_before() -> None:
    first, inrs = InrClassifier(encoder().float(), classes=3), a_set(6)
    second = copy.deepcopy(first)
    losses = first.fit(inrs, TrainSettings(steps=3, batch=3))
    torch.rand(1)
    assert second.fit(inrs, TrainSettings(steps=3, batch=3)) == losses


def test_signs_are_canonical_without_biases_too() -> None:
    stack = {name: values if name.endswith("weight") else 0 * values for name, values in networks().items()}
    read, there = encoder(), encoder()(stack, SIREN)
    other = read(rewrite(stack, SIREN, torch.Generator().manual_seed(0)), SIREN)
    torch.testing.assert_close(other, there, rtol=0, atol=1e-8)


def test_probes_are_what_the_nodes_answer_and_learned() -> None:
    reader, stack = encoder(probes=9), networks()
    nn.init.normal_(reader.network.passes[0].features.weight, std=0.1)  # they are zero at first
    changed = rewrite(stack, SIREN, torch.Generator().manual_seed(1))
    moved = stack | {"2.bias": stack["2.bias"] + 1}  # another colour everywhere
    assert (reader(stack, SIREN) - reader(moved, SIREN)).abs().max() > 1e-3
    torch.testing.assert_close(reader(changed, SIREN), reader(stack, SIREN), rtol=0, atol=1e-8)
    reader(changed, SIREN)[:, :3].square().sum().backward()  # of all, the norm at the end is constant
    assert reader.points is not None and reader.points.shape == (9, 2) and reader.points.grad.abs().max() > 1e-3


def test_an_embedding_knows_inputs_and_outputs_apart() -> None:
    stack, read = networks(), encoder()
    turned = dict(stack) | {"0.weight": stack["0.weight"].flip(-1)}
    repainted = dict(stack) | {"2.weight": stack["2.weight"].flip(-2), "2.bias": stack["2.bias"].flip(-1)}
    for other in (turned, repainted):
        assert (read(other, SIREN) - read(stack, SIREN)).abs().max() > 1e-3


def test_many_networks_are_read_as_each_alone_and_width_and_depth_are_free() -> None:
    read = encoder()
    for siren in (SIREN, Siren((2, 11, 3)), Siren((2, 4, 9, 6, 3))):
        stack = networks(3, siren)
        alone = torch.cat([read({k: v[i : i + 1] for k, v in stack.items()}, siren) for i in range(3)])
        torch.testing.assert_close(read(stack, siren), alone)


def test_a_set_is_made_in_parts_and_goes_on_where_it_was_killed(
    data_root: DataRoot, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("dnge_compress.inr.sets.PART", 3)
    monkeypatch.setattr(
        "dnge_compress.zoo.resumable.each_done", lambda jobs, action, tasks: (action(*t) for t in tasks)
    )
    wanted, out = about("mnist", "train", count=7, fits=2, settings=FitSettings(steps=2)), tmp_path / "set.safetensors"
    whole = build_set(wanted, out, data_root=data_root)
    assert len(whole) == 14 and whole.image.tolist() == [*range(7)] * 2
    assert not torch.equal(whole.stack["0.weight"][0], whole.stack["0.weight"][7])  # the second fit starts elsewhere

    def killed(jobs, action, tasks):
        yield action(*tasks[0])
        raise KeyboardInterrupt

    other = tmp_path / "other.safetensors"
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr("dnge_compress.zoo.resumable.each_done", killed)
        build_set(wanted, other, data_root=data_root)
    assert not other.exists()
    again = build_set(wanted, other, data_root=data_root)
    assert all(torch.equal(again.stack[name], whole.stack[name]) for name in whole.stack)
    loaded = InrSet.load(other)
    assert torch.equal(loaded.psnr, whole.psnr) and loaded.siren == whole.siren and loaded.about == wanted
    with pytest.raises(CheckpointError, match="holds another set"):
        build_set(wanted | {"seed": 1}, out, data_root=data_root)


def test_the_example_draws_its_picture(data_root: DataRoot, tmp_path: Path, monkeypatch, capsys) -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "inr2jls_mnist.py"
    monkeypatch.setenv("DNGE_DATA", str(data_root.data))
    monkeypatch.setattr("sys.argv", [str(example), "--out", str(tmp_path / "out"), "--count", "7", "--steps", "2"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(example), run_name="__main__")
    assert "of 7 unseen digits" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "digits.png") as picture:
        assert picture.size == (7 * 28 * 3, 3 * 28 * 3)


def test_a_place_that_cannot_be_written_is_told(data_root: DataRoot, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    wanted = about("mnist", "train", count=7)
    with pytest.raises(CheckpointError, match="can't write .*about.json.*choose another place"):
        build_set(wanted, tmp_path / "file" / "set.safetensors", data_root=data_root)
    with pytest.raises(CheckpointError, match="is a folder; name a file"):
        build_set(wanted, tmp_path, data_root=data_root)


def test_a_file_that_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="no set of fitted networks"):
        InrSet.load(tmp_path / "junk.safetensors")


def test_a_state_dict_of_linear_layers_is_read_as_a_chain() -> None:
    model = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    found = read_chain(model.state_dict())
    assert widths_of(found) == (2, 7, 5, 3)
    assert torch.equal(found["1.weight"], model[2].weight) and not found["1.bias"].any()


@pytest.mark.parametrize(
    ("weights", "error", "told"),
    [
        ({}, UnsupportedModelError, "no linear layer"),
        ({"a.weight": torch.ones(3, 2), "b.weight": torch.ones(2, 4)}, UnsupportedModelError, "no chain"),
        ({"conv.weight": torch.ones(3, 2, 3, 3)}, UnsupportedModelError, r"'conv.weight' \[3, 2, 3, 3\] is no weight"),
        ({"a.weight": torch.ones(3, 2), "a.bias": torch.ones(2)}, UnsupportedModelError, "'a.bias' has shape"),
        ({"a.weight": torch.full((3, 2), float("nan"))}, WeightError, "'a.weight' holds values"),
    ],
)
def test_what_is_no_chain_is_refused_by_name(weights, error, told) -> None:
    with pytest.raises(error, match=told):
        read_chain(weights)


def test_networks_fitted_elsewhere_are_gathered_and_odd_ones_named() -> None:
    def network(width: int) -> dict[str, Tensor]:
        return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 3)).state_dict()

    found = gather([network(4), network(4)], [7, 8])
    assert found.siren.widths == (2, 4, 3) and found.labels.tolist() == [7, 8]
    with pytest.raises(DataError, match="network 1 has widths"):
        gather([network(4), network(5)])
    with pytest.raises(DataError, match="0 networks"):
        gather([])


def test_encoders_refuse_networks_that_they_cannot_read() -> None:
    other = Siren((2, 7, 5, 1))
    with pytest.raises(DataError, match="inputs and outputs"):
        encoder()(networks(2, other), other)


def test_a_classifier_learns_the_labels_of_a_few_networks() -> None:
    inrs = a_set(6)
    torch.manual_seed(0)
    classifier = InrClassifier(encoder().float(), classes=3, dropout=0.0)
    losses = classifier.fit(inrs, TrainSettings(steps=60, batch=6, learning_rate=1e-2))
    assert losses[-1] < 0.6 * losses[0]
    assert classifier.accuracy(inrs) == 1.0


def small_jls() -> INR2JLS:
    torch.manual_seed(0)
    config = JlsConfig(side=8, channels=4, hidden=16, place=4, classes=3, views=6)
    return INR2JLS(encoder().float(), config)


def test_a_latent_space_learns_to_draw_six_views_and_then_to_classify() -> None:
    inrs, jls = a_set(6), small_jls()
    images = torch.nn.functional.interpolate(torch.rand(6, 3, 2, 2) * 2 - 1, size=8)
    losses = jls.fit(inrs, images, TrainSettings(steps=150, batch=6, learning_rate=1e-2))
    assert losses[-1] < 0.7 * losses[0]
    latents = jls.encode(inrs.stack, inrs.siren)
    assert latents.shape == (6, 6, 4, 2, 2)
    assert jls.decode(latents).shape == (6, 6, 3, 8, 8)
    assert jls.classify(inrs.stack, inrs.siren).shape == (6, 3)


def test_products_are_exact_when_a_model_answers(monkeypatch) -> None:
    """bfloat16 is for training alone: the same weights in float64 answer the same."""
    monkeypatch.setattr("dnge_compress.core.precision.has_bfloat16", lambda: True)
    inrs, read = a_set(6), encoder().float()
    classifier = InrClassifier(read)
    answers = classifier(inrs.stack, inrs.siren)
    exact = classifier.double()({name: values.double() for name, values in inrs.stack.items()}, SIREN)
    torch.testing.assert_close(answers, exact.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("known", "fast"), [({"amx_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False)])
def test_bfloat16_is_for_cpus_that_have_it(known, fast: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    has_products_of.cache_clear()
    with fast_products(training=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if fast else torch.float32)
    with fast_products(training=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    has_products_of.cache_clear()


@pytest.mark.parametrize("fine_tune", [False, True])
def test_what_makes_the_latents_stays_as_it_is_unless_it_is_fine_tuned(fine_tune: bool) -> None:
    inrs, jls = a_set(6), small_jls()
    jls.fit(inrs, torch.rand(6, 3, 8, 8), TrainSettings(steps=3, batch=3))  # leaves gradients behind
    before = {name: p.clone() for name, p in jls.named_parameters()}
    jls.fit_classifier(inrs, TrainSettings(steps=3, batch=3), fine_tune=fine_tune)
    changed = {name.split(".")[0] for name, p in jls.named_parameters() if not torch.equal(p, before[name])}
    latents = {"encoder", "cells", "place", "content", "generate"} if fine_tune else set()
    assert changed == latents | {"recognise"}


def test_learning_reports_every_step_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    inrs, told = a_set(6), []
    InrClassifier(encoder().float(), classes=3).fit(
        inrs, TrainSettings(steps=3, batch=3), progress=lambda *step: told.append(step)
    )
    small_jls().fit_classifier(inrs, TrainSettings(steps=200, batch=3))
    assert [step[:3] for step in told] == [("learn", 1, 3), ("learn", 2, 3), ("learn", 3, 3)]
    assert told[0][3].startswith("loss ") and capsys.readouterr() == ("", "")


def test_a_model_is_ready_to_answer_after_training_that_failed() -> None:
    inrs, classifier = a_set(6), InrClassifier(encoder().float(), classes=3)
    with pytest.raises(DataError, match="lower the learning rate"):
        classifier.fit(inrs, TrainSettings(steps=9, batch=6, learning_rate=1e30))
    assert not classifier.training


def test_functions_are_asked_in_full_precision_while_products_are_fast() -> None:
    inrs = a_set(2)
    with torch.autocast("cpu", torch.bfloat16):
        asked = inrs.siren.images(inrs.stack, 8)
    torch.testing.assert_close(asked, inrs.siren.images(inrs.stack, 8), rtol=0, atol=0)


def test_features_are_made_in_full_precision_while_products_are_fast(monkeypatch) -> None:
    inrs, read, given = a_set(2), encoder().float(), []
    monkeypatch.setattr(read.network, "embed", lambda graph, stack, seen: given.append(seen) or torch.ones(2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        read(inrs.stack, inrs.siren)
    read(inrs.stack, inrs.siren)
    for name, fast in given[0].items():
        torch.testing.assert_close(fast, given[1][name], rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 11])
def test_any_number_of_steps_is_taken_and_models_come_ready_to_answer(steps: int) -> None:
    inrs, jls = a_set(6), small_jls()
    assert len(jls.fit_classifier(inrs, TrainSettings(steps=steps, batch=3))) == steps
    for model in (jls.classify, small_jls().classify, InrClassifier(encoder().float())):
        assert torch.equal(model(inrs.stack, inrs.siren), model(inrs.stack, inrs.siren))


@pytest.mark.parametrize(("make", "told"), [
    (lambda: Siren((2,)), "layers is 1"),
    (lambda: Siren((2, 0, 1)), "width is 0"),
    (lambda: Siren(omega=float("nan")), "omega is nan"),
    (lambda: FitSettings(steps=0), "steps is 0"),
    (lambda: FitSettings(learning_rate=0.0), "learning_rate is 0.0"),
    (lambda: FitSettings(base_width=-1), "base_width is -1"),
    (lambda: InrEncoderConfig(probes=-1), "probes is -1"),
    (lambda: JlsConfig(side=0), "side is 0"),
    (lambda: TrainSettings(steps=0), "steps is 0"),
    (lambda: TrainSettings(learning_rate=float("nan")), "learning_rate is nan"),
    (lambda: TrainSettings(backbone_lr_scale=-1), "backbone_lr_scale is -1"),
    (lambda: TrainSettings(backbone_lr_scale=2), "backbone_lr_scale is 2"),
    (lambda: InrEncoderConfig(hidden=0), "hidden is 0"),
    (lambda: InrEncoderConfig(output_hidden=0), "output_hidden is 0"),
    (lambda: FitSettings(learning_rate=float("inf")), "learning_rate is inf"),
    (lambda: HeadConfig(dropout=2.0), "dropout is 2.0"),
    (lambda: HeadConfig(mixup=-1.0), "mixup is -1.0"),
    (lambda: JlsConfig(copies=0), "copies is 0"),
    (lambda: replace(a_set(3), labels=torch.zeros(2).long()), r"'0.bias' of 2 networks"),
    (lambda: replace(a_set(3), labels=torch.zeros(3)), "'labels' is torch.float32"),
    (lambda: replace(a_set(3), stack=networks(3)), "is torch.float64"),
    (lambda: replace(a_set(3), stack={k: v * torch.nan for k, v in a_set(3).stack.items()}), "not finite"),
    (lambda: gather([{k: v[0] for k, v in networks().items()}], torch.tensor([0.5])), "labels must be whole numbers"),
    (lambda: gather([{k: v[0] for k, v in networks().items()}], [-2]), "labels must be whole numbers"),
    (lambda: gather([nn.Linear(2, 3).state_dict(), {"weight": torch.tensor([[torch.nan]])}]), "network 1: 'weight'"),
    (lambda: read_chain(nn.Conv2d(1, 2, 3).state_dict()), r"'weight' \[2, 1, 3, 3\] is no weight"),
    (lambda: read_chain({"0.weight": torch.ones(3, 2).long()}), "'0.weight' is torch.int64"),
    (lambda: small_jls().fit(a_set(6), torch.full((6, 3, 8, 8), 255.0), TrainSettings(steps=1)), "in −1 … 1"),
    (lambda: small_jls().fit(a_set(6), torch.full((6, 3, 8, 8), torch.nan), TrainSettings(steps=1)), "in −1 … 1"),
    (lambda: fit(torch.zeros(1, 1, 8, 8), Siren(), FitSettings(steps=30, learning_rate=1e30), 0),
     "diverged at a learning rate"),
    (lambda: InrClassifier(encoder().float()).fit(a_set(6), TrainSettings(steps=9, batch=6, learning_rate=1e30)),
     "lower the learning rate"),
    (lambda: fit(torch.full((1, 1, 8, 8), torch.nan), Siren(), FitSettings(), 0), "images hold values"),
])  # fmt: skip
def test_wrong_settings_are_told_where_they_are_made(make, told: str) -> None:
    with pytest.raises(DngeError, match=told):
        make()


def test_a_set_of_broken_networks_is_told_by_its_file(tmp_path: Path) -> None:
    inrs = a_set(2)
    inrs.stack["1.bias"][1, 0] = torch.nan
    inrs.save(tmp_path / "set.safetensors")
    with pytest.raises(
        CheckpointError, match=r"set\.safetensors' is no set .*'1\.bias' holds values that are not finite"
    ):
        InrSet.load(tmp_path / "set.safetensors")


def unlabelled() -> InrSet:
    return gather([{name: values[0] for name, values in networks().items()}] * 2)


def test_wrong_sets_and_images_are_told() -> None:
    with pytest.raises(DataError, match="is empty"):
        InrClassifier(encoder().float()).fit(a_set(6).select(slice(0, 0)), TrainSettings(steps=1))
    for shape in ((2, 3, 8, 8), (6, 1, 8, 8), (6, 3, 8, 4)):
        with pytest.raises(DataError, match=r"give one \[3, 8, 8\] for each number up to 5"):
            small_jls().fit(a_set(6), torch.zeros(shape), TrainSettings(steps=1))
    with pytest.raises(DataError, match="is empty"):
        small_jls().fit(a_set(6).select(slice(0, 0)), torch.zeros(6, 3, 8, 8), TrainSettings(steps=1))
    with pytest.raises(DataError, match="label 2, and there are 2 classes"):
        InrClassifier(encoder().float(), classes=2).fit(a_set(6), TrainSettings(steps=1))
    with pytest.raises(DataError, match="no label"):
        small_jls().fit_classifier(unlabelled(), TrainSettings(steps=1))
    with pytest.raises(DataError, match="at least one"):
        fit(torch.zeros(0, 1, 8, 8), Siren(), FitSettings(), 0)
