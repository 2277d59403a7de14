"""The zoo of small trained networks, on tiny synthetic copies of the data sets' files."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from dnge_compress.core.claims import LOCK, claimed
from dnge_compress.core.errors import CheckpointError, DataError, UnknownNameError
from dnge_compress.zoo import build as zoo
from dnge_compress.zoo.architectures import build
from dnge_compress.zoo.batches import IGNORED, example_batches, logits, loss, neighbour_batches
from dnge_compress.zoo.blueprint import FAMILIES, Blueprint, blueprints
from dnge_compress.zoo.build import load
from dnge_compress.zoo.corpora import VOCABULARY, tokens
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import images
from dnge_compress.zoo.pretrain import targets
from dnge_compress.zoo.training import float32_attention, train_through


def train(blueprint: Blueprint, *, data_root: DataRoot) -> Any:
    """The network as its training leaves it."""
    return next(train_through(blueprint, [blueprint.stop], data_root=data_root))


DRAWN = {b.family: b for b in blueprints(2 * len(FAMILIES), seed=0)}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    """Data files like the shared ones, with 40 train and 20 held-out images and 600 sentences."""
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.uint8) % 10
    digits = (rng.integers(0, 40, (60, 28, 28)) + 20 * labels[:, None, None]).astype(np.uint8)
    np.savez(data / "mnist.npz", x_train=digits[:40], y_train=labels[:40], x_test=digits[40:], y_test=labels[40:])
    jpegs = []
    for _ in labels:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "jpeg")
        jpegs.append(file.getvalue())
    splits = ["train"] * 40 + ["test"] * 20
    parquet.write_table(pa.table({"split": splits, "label": labels, "jpeg": jpegs}), data / "cifar10.parquet")
    words = ["the", "old", "whale", "swam", "slowly", "past", "a", "silent", "grey", "harbour"]
    for file_name, seed in (("books_train.parquet", 0), ("books_valid.parquet", 1)):
        draw = random.Random(seed)
        text = "\n\n".join(" ".join(draw.choices(words, k=12)) + "." for _ in range(600))
        parquet.write_table(pa.table({"title": ["A book"], "text": [text]}), data / file_name)
    return DataRoot(data, tmp_path_factory.mktemp("cache"))


def tiny(family: str, **changes: object) -> Blueprint:
    small: dict[str, Any] = {"steps": 3, "stop": 3, "batch_size": 4, "preparation": 0}
    if family in ("vit", "gpt2", "llama", "bert"):
        small |= {"depth": 2, "length": 16 * DRAWN[family].is_language}
    return replace(DRAWN[family], **small | changes)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the zoo is trained; more threads than free cores only slow such small networks down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_blueprints_depend_on_the_seed_alone_and_a_longer_list_begins_with_the_shorter() -> None:
    assert blueprints(20, seed=3) == blueprints(40, seed=3)[:20]
    assert blueprints(20, seed=3) != blueprints(20, seed=4)


def test_blueprints_go_round_the_families_and_differ() -> None:
    plans = blueprints(112, seed=0)
    assert [plan.family for plan in plans[:7]] == list(FAMILIES)
    assert len({plan.name for plan in plans}) == 112
    for family in FAMILIES:
        shapes = {(p.data, p.widths, p.depth, p.ffn, p.heads) for p in plans if p.family == family}
        assert len(shapes) >= 14
    assert len({plan.data for plan in plans}) == 5


def test_a_quarter_of_the_networks_is_stopped_early() -> None:
    assert sum(plan.stop < plan.steps for plan in blueprints(112, seed=0)) == 28


def test_half_of_the_llamas_group_their_queries_and_some_have_one_key_value_head() -> None:
    llamas = [plan for plan in blueprints(112, seed=0) if plan.family == "llama"]
    assert sum(plan.kv_heads < plan.heads for plan in llamas) == len(llamas) // 2
    assert any(plan.kv_heads == 1 for plan in llamas)
    assert any(1 < plan.kv_heads < plan.heads for plan in llamas)


def test_a_blueprint_survives_json() -> None:
    for plan in blueprints(14, seed=0):
        assert Blueprint.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_an_impossible_blueprint_is_refused() -> None:
    with pytest.raises(DataError, match="heads"):
        tiny("llama", heads=7, kv_heads=2, widths=(64,))
    with pytest.raises(DataError, match="steps"):
        tiny("mlp", stop=4)
    with pytest.raises(UnknownNameError, match="resnet"):
        replace(tiny("mlp"), family="resnets")
    with pytest.raises(UnknownNameError, match="mnist"):
        tiny("mlp", data="books-bytes")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds_and_learns_from_a_batch(family: str, data_root: DataRoot) -> None:
    model = build(tiny(family))
    (batch,) = example_batches(tiny(family), "train", count=1, batch_size=4, seed=0, data_root=data_root)
    value = loss(model, batch)
    assert value.ndim == 0 and torch.isfinite(value)
    value.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("depth", [3, 4, 5, 6])
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
@pytest.mark.parametrize("layout", [("stride", "flatten"), ("pool", "flatten"), ("pool", "average")])
def test_a_cnn_of_any_depth_fits_its_image(depth: int, data: str, layout: tuple[str, str], data_root: DataRoot) -> None:
    plan = tiny("cnn", widths=(5, 6, 7, 8, 9, 11)[:depth], depth=depth, data=data, layout=layout)
    (batch,) = example_batches(plan, "held-out", count=1, batch_size=3, seed=0, data_root=data_root)
    assert logits(build(plan), batch).shape == (3, 10)


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = build(DRAWN["mlp"]), build(DRAWN["mlp"])
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize("family", ["cnn", "gpt2", "bert"])
def test_the_same_seed_gives_the_same_batches(family: str, data_root: DataRoot) -> None:
    def labels(seed: int, split: zoo.Split) -> torch.Tensor:
        plan = tiny(family)
        drawn = example_batches(plan, split, count=2, batch_size=8, seed=seed, data_root=data_root)
        return torch.cat([batch.labels for batch in drawn])

    assert torch.equal(labels(1, "train"), labels(1, "train"))
    assert not torch.equal(labels(1, "train"), labels(2, "train"))
    assert not torch.equal(labels(1, "train"), labels(1, "held-out"))


def test_labels_of_causal_models_are_the_next_tokens(data_root: DataRoot) -> None:
    (batch,) = example_batches(tiny("gpt2"), "train", count=1, batch_size=4, seed=0, data_root=data_root)
    assert torch.equal(batch.inputs["input_ids"][:, 1:], batch.labels[:, :-1])


def test_bert_hides_fifteen_percent_behind_its_own_id_and_is_judged_there_only(data_root: DataRoot) -> None:
    plan = tiny("bert", length=40)
    (batch,) = example_batches(plan, "train", count=1, batch_size=4, seed=0, data_root=data_root)
    ids, hidden = batch.inputs["input_ids"], batch.labels != IGNORED
    assert hidden.sum(1).tolist() == [6, 6, 6, 6]
    assert torch.equal(ids == plan.mask_id, hidden)
    assert batch.labels[hidden].max() < VOCABULARY[plan.data] == plan.mask_id


def test_the_preparation_of_bert_names_both_neighbours(data_root: DataRoot) -> None:
    plan = tiny("bert")
    batch = next(neighbour_batches(plan, batch_size=4, seed=0, data_root=data_root))
    ids = batch.inputs["input_ids"]
    seen = ids != plan.mask_id
    assert torch.equal(batch.labels[:, 1:, 0][seen[:, :-1]], ids[:, :-1][seen[:, :-1]])
    assert torch.equal(batch.labels[:, :-1, 1][seen[:, 1:]], ids[:, 1:][seen[:, 1:]])


def test_bpe_tokens_are_fewer_than_bytes_and_within_the_vocabulary(data_root: DataRoot) -> None:
    stream = tokens("books-bpe1024", "train", data_root=data_root)
    assert len(stream) < len(tokens("books-bytes", "train", data_root=data_root)) / 2
    assert stream.min() >= 0 and stream.max() < 1024


def test_decoded_photographs_come_from_the_cache_once_they_are_there(data_root: DataRoot) -> None:
    first = images("cifar10", "train", data_root=data_root)
    again = images("cifar10", "train", data_root=DataRoot(Path("no-such-folder"), data_root.cache))
    assert first.pixels.shape == (40, 3, 32, 32)
    assert np.array_equal(first.pixels, again.pixels) and torch.equal(first.labels, again.labels)


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data folder"):
        DataRoot.find(tmp_path / "nowhere")
    with pytest.raises(DataError, match="mnist.npz is missing"):
        images("mnist", "train", data_root=DataRoot(tmp_path, tmp_path))
    with pytest.raises(UnknownNameError, match="books-bytes"):
        tokens("book-bytes", "train", data_root=DataRoot(tmp_path, tmp_path))


def test_a_batch_larger_than_the_data_is_refused(data_root: DataRoot) -> None:
    with pytest.raises(DataError, match="20 held-out images"):
        example_batches(tiny("mlp"), "held-out", count=1, batch_size=21, seed=0, data_root=data_root)


def test_training_learns_and_is_deterministic(data_root: DataRoot) -> None:
    plan = tiny("mlp", data="mnist", steps=40, stop=40, batch_size=20, lr=2e-3, optimiser="adamw")
    (batch,) = example_batches(plan, "held-out", count=1, batch_size=20, seed=0, data_root=data_root)
    first, second = train(plan, data_root=data_root), train(plan, data_root=data_root)
    assert torch.equal(first.head.weight, second.head.weight)
    assert loss(first, batch) < loss(build(plan).eval(), batch) - 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_comes_back_from_its_folder_with_equal_outputs(
    family: str, data_root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnge_compress.zoo.training._IMAGE_EVALUATION", (1, 10))
    monkeypatch.setattr("dnge_compress.zoo.training._TEXT_EVALUATION", (1, 4))
    plan = tiny(family, steps=5, stop=5, preparation=2 if family == "bert" else 0)
    folders = zoo.train_networks(plan, tmp_path, data_root=data_root)
    assert [f.name for f in folders] == [f"{plan.name}@20", f"{plan.name}@50", plan.name] and len(folders) == 3
    (batch,) = example_batches(plan, "held-out", count=1, batch_size=5, seed=0, data_root=data_root)
    for folder, moment in zip(folders, plan.networks(), strict=True):
        model, restored = load(folder)
        assert restored == moment and not model.training
        alone = train(moment, data_root=data_root)
        with torch.no_grad():  # a network kept on the way is exactly what training until there gives
            assert torch.equal(logits(model, batch), logits(alone, batch))
    quality = zoo.record(folders[-1])["quality"]
    assert set(quality) == {"loss", "accuracy", "seconds"} | ({"unigram_loss"} if plan.is_language else set())
    monkeypatch.setattr(zoo, "train_through", lambda *a, **k: pytest.fail("trained twice"))
    zoo.train_networks(plan, tmp_path, data_root=data_root)
    assert zoo.finished(tmp_path) == sorted(folders)
    with pytest.raises(CheckpointError, match="another blueprint"):
        zoo.train_networks(replace(plan, lr=1.0), tmp_path, data_root=data_root)


def test_a_killed_run_makes_only_what_is_missing(
    data_root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnge_compress.zoo.training._IMAGE_EVALUATION", (1, 10))
    plan = tiny("mlp", steps=5, stop=5)
    whole = zoo.train_networks(plan, tmp_path / "whole", data_root=data_root)
    shutil.copytree(whole[2], tmp_path / "part" / whole[2].name)
    again = zoo.train_networks(plan, tmp_path / "part", data_root=data_root)
    for a, b in zip(whole, again, strict=True):
        assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_a_whole_zoo_of_another_seed_is_refused(
    data_root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnge_compress.zoo.training._IMAGE_EVALUATION", (1, 10))
    plan = tiny("mlp")
    zoo.train_networks(plan, tmp_path, data_root=data_root)
    monkeypatch.setattr(zoo, "blueprints", lambda count, seed: [replace(plan, seed=seed)])
    zoo.build_zoo(tmp_path, 1, plan.seed, data_root)
    with pytest.raises(CheckpointError, match="holds another blueprint"):
        zoo.build_zoo(tmp_path, 1, plan.seed + 1, data_root)


def test_two_builds_of_one_zoo_are_refused(data_root: DataRoot, tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "zoo", tmp_path / "zoo" / LOCK),
        pytest.raises(CheckpointError, match="another process is at work"),
    ):
        zoo.build_zoo(tmp_path / "zoo", 1, 0, data_root)
    assert list(tmp_path.glob("zoo*")) == []


def test_a_language_model_finds_its_tokenizer(
    data_root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnge_compress.zoo.training._TEXT_EVALUATION", (1, 4))
    plan = tiny("bert", data="books-bytes")
    model, _ = load(zoo.train_networks(plan, tmp_path, data_root=data_root)[-1], data_root=data_root)
    assert AutoTokenizer.from_pretrained(model.name_or_path)("a b").input_ids == list(b"a b")


def test_interrupted_training_leaves_no_half_folder(
    data_root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        zoo.train_networks(tiny("mlp"), tmp_path, data_root=data_root)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_blueprint_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="blueprint.json"):
        load(tmp_path)


@pytest.mark.parametrize("family", ["mlp", "vit", "llama"])
def test_targets_add_up_to_what_cuts_really_cost(
    family: str, data_root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnge_compress.zoo.training._IMAGE_EVALUATION", (1, 10))
    monkeypatch.setattr("dnge_compress.zoo.training._TEXT_EVALUATION", (1, 4))
    original = targets.example_batches
    monkeypatch.setattr(targets, "example_batches", lambda b, s, **k: original(b, s, **k | {"batch_size": 10}))
    monkeypatch.setattr(targets, "CALIBRATION_TOKENS", 256)
    paid: dict[str, list[float]] = {}
    measured = targets._Judge._cost
    watched = lambda self, space, keep: paid.setdefault(space, []).append(float(c := measured(self, space, keep))) or c  # noqa: E731
    monkeypatch.setattr(targets._Judge, "_cost", watched)
    folder = zoo.train_networks(tiny(family), tmp_path, data_root=data_root)[-1]
    for name in targets.examples_of(folder):
        paid.clear()
        targets.make_targets(folder, name, data_root)
        example = targets.read_example(folder, name, data_root)
        assert set(example.targets) == set(example.obs_costs) and all(
            torch.isfinite(t).all() for t in example.targets.values()
        )
        for space in example.graph.of_kind("neuron"):
            cheapest = example.obs_costs[space.name].argsort()[: round(0.75 * space.units)]
            most = max(paid[space.name])
            assert float(example.targets[space.name][cheapest].exp().sum()) == pytest.approx(most, rel=0.01, abs=1e-5)
    assert len(targets.examples_of(folder)) == (2 if family == "vit" else 1)
    assert targets.examples_of(folder.with_name(f"{folder.name}@20")) == [f"{folder.name}@20"]


def test_attention_is_as_it_was_after_a_training_that_failed() -> None:
    model: Any = build(next(b for b in DRAWN.values() if b.family == "bert"))
    usual = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), float32_attention(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == usual
