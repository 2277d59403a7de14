"""Networks from elsewhere: the order of their layers, and folders of checkpoints with a table."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dnge_compress.core.errors import CheckpointError, DataError, DngeError, UnsupportedModelError
from dnge_compress.core.tensors import UnorderedTensors
from dnge_compress.inr import Siren, gather
from dnge_compress.inr.chain import layers_of, read_chain
from dnge_compress.inr.siren import grid
from dnge_compress.zoo.checkpoints import read_checkpoints

NAMES = ("embed", "middle", "inner", "project")
WIDTHS = (2, 8, 8, 8, 1)

ROUNDING = {"atol": 1e-3, "rtol": 0}  # of float32, behind sines of thirty times what layers write


def named(names: tuple[str, ...] = NAMES, seed: int = 0) -> dict[str, Tensor]:
    """A chain of linear layers as a state dict gives it, its inner layers all of one shape."""
    torch.manual_seed(seed)
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(WIDTHS)]
    return {f"{n}.{k}": v for n, one in zip(names, layers, strict=True) for k, v in one.state_dict().items()}


def shown(weights: dict[str, Tensor], names: tuple[str, ...] = NAMES) -> Tensor:
    """What the network shows at the pixels, by plain torch."""
    x = grid(4)
    for name in names:
        x = nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        x = x if name == names[-1] else torch.sin(30 * x)
    return x


def test_layers_stay_in_the_order_of_the_state_dict_whatever_they_are_called() -> None:
    weights = named()
    found = gather([weights])
    torch.testing.assert_close(found.siren.render(found.stack, grid(4))[0], shown(weights), **ROUNDING)


def test_layers_are_taken_in_the_order_that_is_told() -> None:
    weights = named()
    mixed = {name: weights[name] for name in sorted(weights)}  # embed, inner, middle, project
    found = gather([mixed], layers=NAMES)
    torch.testing.assert_close(found.siren.render(found.stack, grid(4))[0], shown(weights), **ROUNDING)


def test_numbers_order_layers_that_are_called_alike_otherwise() -> None:
    names = ("net.2", "net.4", "net.6", "net.10")
    weights = named(names)
    mixed = {name: weights[name] for name in sorted(weights)}  # net.10 first, as files sort it
    found = gather([mixed])
    torch.testing.assert_close(found.siren.render(found.stack, grid(4))[0], shown(weights, names), **ROUNDING)


NUMBERED = tuple(f"hidden.{i}" for i in range(12))


@pytest.mark.parametrize("names", [(*NUMBERED, "out"), ("net.0", *NUMBERED, "out"), ("inlet", *NUMBERED)])
@pytest.mark.parametrize("has_biases", [True, False])
def test_a_first_or_last_layer_of_another_name_leaves_the_others_their_numbers(
    names: tuple[str, ...], has_biases: bool, tmp_path: Path
) -> None:
    ends = {names[0]: (8, 2), names[-1]: (1, 8)}
    shapes = {name: ends.get(name, (8, 8)) for name in names}
    weights = {f"{name}.weight": torch.randn(*shape) for name, shape in shapes.items()}
    if has_biases:
        weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "a.safetensors")
    assert layers_of(load_file(tmp_path / "a.safetensors")) == layers_of(weights) == names


@pytest.mark.parametrize(
    "names", [NAMES, ("a", "b"), (*(f"enc.{i}" for i in range(11)), *(f"dec.{i}" for i in range(11)))]
)
def test_an_order_that_a_file_lost_is_not_guessed_at(names: tuple[str, ...], tmp_path: Path) -> None:
    weights = {
        f"{name}.{kind}": torch.zeros(4, 4)[: 4 if kind == "weight" else 1].squeeze(0)
        for name in names
        for kind in ("weight", "bias")
    }
    save_file(weights, tmp_path / "a.safetensors")
    read = load_file(tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"keeps no order.*layers="):
        layers_of(read)
    assert layers_of(weights) == layers_of(read, names) == names
    bare = {name: value for name, value in read.items() if name.endswith("weight")}
    if len(names) > 4:  # numbers disagree
        with pytest.raises(UnsupportedModelError, match=r"keeps no order.*layers="):
            layers_of(bare)


def test_a_square_chain_of_unnumbered_ends_is_not_guessed_at() -> None:
    weights = {f"{name}.weight": torch.zeros(8, 8) for name in (*NUMBERED, "out")}
    with pytest.raises(UnsupportedModelError, match=r"keeps no order.*layers="):
        layers_of(UnorderedTensors(weights))


def test_weights_are_called_with_or_without_a_dot() -> None:
    weights = {name.replace(".", "_"): value for name, value in named(("w0", "w1", "w2", "w3")).items()}
    assert layers_of(weights) == ("w0", "w1", "w2", "w3")
    assert read_chain(weights)["3.bias"] is weights["w3_bias"]
    with pytest.raises(UnsupportedModelError, match=r"'w0_weight' and 'w0.weight' are weights of one layer"):
        read_chain(weights | {"w0.weight": weights["w0_weight"]})


def test_networks_of_one_set_have_their_layers_in_one_order() -> None:
    first, second = named(), named(("embed", "inner", "middle", "project"))
    with pytest.raises(UnsupportedModelError, match=r"network 1 has layers embed, inner.*the first embed, middle"):
        gather([first, second])
    assert len(gather([first, second], layers=NAMES)) == 2


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (("embed", "middle", "inner"), "'project' isn't among the layers"),
        ((*NAMES, "last"), "there is no layer 'last'"),
        ((*NAMES, "inner"), "'inner' is named twice"),
    ],
)
def test_an_order_that_does_not_fit_is_told(layers, told: str) -> None:
    with pytest.raises(UnsupportedModelError, match=told):
        read_chain(named(), layers)


def a_folder(folder: Path, table: str = "file,accuracy,label\nb.pt,0.5,7\na.safetensors,0.25,3\n") -> Path:
    save_file(named(seed=1), folder / "a.safetensors")
    torch.save({"state_dict": named(seed=2), "epoch": 3}, folder / "b.pt")
    (folder / "table.csv").write_text(table)
    return folder


def test_a_folder_of_checkpoints_is_read_with_its_table(tmp_path: Path) -> None:
    found = read_checkpoints(a_folder(tmp_path))
    assert found.names == ("b.pt", "a.safetensors") and len(found) == 2
    assert found.column("accuracy").tolist() == [0.5, 0.25] and found.column("label").tolist() == [7, 3]
    assert list(found.weights[0]) == list(named()) and torch.equal(
        found.weights[1]["inner.weight"], named(seed=1)["inner.weight"]
    )
    inrs = gather(found.weights, found.column("label").long(), layers=NAMES)
    assert inrs.labels.tolist() == [7, 3] and inrs.siren == Siren(WIDTHS)
    torch.testing.assert_close(inrs.siren.render(inrs.stack, grid(4))[1], shown(named(seed=1)), **ROUNDING)


def test_small_cnns_are_read_as_they_are(tmp_path: Path) -> None:
    cnn = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    save_file(cnn.state_dict(), tmp_path / "cnn.safetensors")
    (tmp_path / "accuracy.csv").write_text("file,accuracy\ncnn.safetensors,0.75\n")
    found = read_checkpoints(tmp_path, tmp_path / "accuracy.csv")
    cnn.load_state_dict(found.weights[0])
    assert found.weights[0]["1.num_batches_tracked"].dtype == torch.int64


def test_a_file_that_keeps_no_order_is_not_guessed_at(tmp_path: Path) -> None:
    found = read_checkpoints(a_folder(tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"network 1: .*keeps no order.*layers="):
        gather(found.weights)
    save_file(named(("net.2", "net.4", "net.6", "net.10")), tmp_path / "a.safetensors")
    assert gather(read_checkpoints(tmp_path).weights[1:]).siren == Siren(WIDTHS)  # numbers say it


@pytest.mark.parametrize(
    ("table", "error", "told"),
    [
        ("name,accuracy\nb.pt,1\n", DataError, "no column 'file'"),
        ("file,accuracy\n", DataError, "names no checkpoint"),
        ("file,accuracy\nc.pt,1\n", CheckpointError, "line 2 .* names 'c.pt'"),
        ("file,accuracy\nb.pt,1\nb.pt,1\n", DataError, "line 3 .* 'b.pt' again"),
        ("file,accuracy\nb.pt,good\n", DataError, "line 2 .* 'good' under 'accuracy'"),
        ("file,accuracy\nb.pt,nan\n", DataError, "line 2 .* 'nan' under 'accuracy'"),
        ("file,accuracy\nb.pt,1_000\n", DataError, "line 2 .* '1_000' under 'accuracy'"),
        ("file,accuracy\nb.pt\n", DataError, "line 2 .* 1 cell"),
        ("file,accuracy\n../b.pt,1\n", CheckpointError, "outside"),
        ("file,accuracy\ntable.csv,1\n", CheckpointError, "'table.csv' is no checkpoint"),
    ],
)
def test_a_table_that_does_not_fit_is_told_by_its_line(tmp_path: Path, table: str, error, told: str) -> None:
    with pytest.raises(error, match=told):
        read_checkpoints(a_folder(tmp_path, table))


def test_folders_and_columns_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"can't read .*table\.csv"):
        read_checkpoints(tmp_path)
    with pytest.raises(DngeError, match="unknown column 'accurcy'.*accuracy"):
        read_checkpoints(a_folder(tmp_path)).column("accurcy")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    a_folder(tmp_path)
    torch.save(nn.Linear(2, 3), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"b\.pt' is no checkpoint .*state dict"):
        read_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "content", [b"hello", b"", b"\x80\x02.", b"]\xff.", b"X\x01\x00\x00\x00\xff.", b"\x80\x02h\x05.", b"J\x01."]
)
def test_a_damaged_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    a_folder(tmp_path)
    (tmp_path / "b.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"b\.pt' is no checkpoint that can be read safely") as caught:
        read_checkpoints(tmp_path)
    assert "weights_only" not in str(caught.value), "torch's advice is to run the file"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda sd: sd, "networks is one state dict; give a list of them"),
        (lambda sd: [nn.Linear(2, 3)], r"network 0 is a module; give its state_dict\(\)"),
        (lambda sd: [sd, None], "network 1 is a NoneType, not a state dict"),
        (
            lambda sd: [{name: value.numpy() for name, value in sd.items()}],
            "network 0: '0.weight' is a ndarray; .*from_numpy",
        ),
        (lambda sd: [{name: value.to("meta") for name, value in sd.items()}], "'0.weight' is a tensor without values"),
        (lambda sd: [{name: value.to_sparse() for name, value in sd.items()}], "'0.weight' is a sparse tensor"),
    ],
)
def test_what_is_no_list_of_state_dicts_is_told(given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        gather(given(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)).state_dict()))
    assert "\n" not in str(caught.value)


def test_a_state_dict_is_found_in_its_checkpoint_as_in_a_folder() -> None:
    weights = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)).state_dict()
    found, plain = gather([{"state_dict": weights, "epoch": 3}]), gather([weights])
    assert all(torch.equal(found.stack[name], plain.stack[name]) for name in plain.stack)


def test_a_folder_that_is_not_there_is_named_before_its_table(tmp_path: Path) -> None:
    a_folder(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder 'nowhere'"):
        read_checkpoints("nowhere", tmp_path / "table.csv")


def test_blanks_around_headings_are_no_part_of_them(tmp_path: Path) -> None:
    a_folder(tmp_path)
    table = tmp_path / "table.csv"
    table.write_text(table.read_text().replace(",", " , ", 1))
    assert all(heading == heading.strip() for heading in read_checkpoints(tmp_path).columns)
