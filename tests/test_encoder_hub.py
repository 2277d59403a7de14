"""Weights of the encoder on disk and on the hub: what is written is read again, what is wrong is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.tensors import write_tensors
from dnge_compress.encoder import DNGEncoder, hub


def random_encoder() -> DNGEncoder:
    """An encoder none of whose values is at its start."""
    torch.manual_seed(3)
    encoder = DNGEncoder()
    for p in encoder.parameters():
        nn.init.normal_(p)
    return encoder


def are_equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(s, t) for (m, s), (n, t) in pairs)


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_encoder().save_pretrained(tmp_path / "encoder", {"zoo": "none"})
    return tmp_path / "encoder"


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A hub of folders: repositories are created and uploaded to, and snapshots are taken from it."""
    data_root = tmp_path / "hub"

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> str:
        Path(folder_path).rename(data_root / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    def create(self: HfApi, repo_id: str, **_: object) -> SimpleNamespace:
        (data_root / repo_id).mkdir(parents=True)
        return SimpleNamespace(repo_id=repo_id)

    def download(repo_id: str, **_: object) -> str:
        if not (data_root / repo_id).is_dir():
            raise LocalEntryNotFoundError("no such snapshot\nand a long explanation")
        return str(data_root / repo_id)

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return data_root


def refusal(source: str | Path) -> str:
    """The one line in which a source is refused."""
    with pytest.raises(CheckpointError) as caught:
        DNGEncoder.from_pretrained(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_gives_the_same_encoder_again(tmp_path: Path) -> None:
    encoder = random_encoder()
    encoder.save_pretrained(tmp_path / "e.safetensors", {"zoo": "none"})
    loaded = DNGEncoder.from_pretrained(tmp_path / "e.safetensors")
    assert are_equal(encoder, loaded) and loaded.config == encoder.config
    assert loaded.origin.provenance == {"zoo": "none"}


def test_a_folder_gives_the_same_encoder_again(folder: Path) -> None:
    loaded = DNGEncoder.from_pretrained(folder)
    assert files(folder) == ["README.md", "config.json", "model.safetensors"]
    assert are_equal(random_encoder(), loaded) and not loaded.training
    assert loaded.origin.provenance == {"zoo": "none"}


def test_the_shipped_encoder_keeps_its_card_and_provenance_in_a_folder(tmp_path: Path) -> None:
    base = DNGEncoder.from_pretrained("base")
    base.save_pretrained(tmp_path / "copy")
    again = DNGEncoder.from_pretrained(tmp_path / "copy")
    card = ModelCard.load(tmp_path / "copy" / "README.md")
    assert are_equal(base, again) and again.origin.provenance == base.origin.provenance
    assert card.text.strip() == hub.BASE.with_name("README.md").read_text(encoding="utf-8").strip()
    assert (card.data.library_name, card.data.license) == ("dnge-compress", "mit")


def test_a_folder_of_another_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match="holds another model"):
        DNGEncoder().save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json"]


def test_changed_weights_leave_the_card_of_the_old_ones_behind(tmp_path: Path) -> None:
    encoder = DNGEncoder.from_pretrained("base")
    nn.init.normal_(encoder.ahead.streams[0].edge)
    encoder.save_pretrained(tmp_path)
    assert "Nothing is recorded." in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert DNGEncoder.from_pretrained(tmp_path).origin.provenance == {}


def test_a_card_in_the_folder_stays(folder: Path) -> None:
    (folder / "README.md").write_text("by hand")
    random_encoder().save_pretrained(folder)
    assert (folder / "README.md").read_text() == "by hand"


def test_loading_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    DNGEncoder.from_pretrained("base")
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_pushed_comes_back_under_its_hub_id(pushed: Path) -> None:
    encoder = random_encoder()
    assert encoder.push_to_hub("someone/encoder") == "https://hub/someone/encoder/commit/1"
    assert files(pushed / "someone" / "encoder") == ["README.md", "config.json", "model.safetensors"]
    assert are_equal(encoder, DNGEncoder.from_pretrained("someone/encoder"))


def test_only_an_encoders_files_are_fetched_at_the_revision_asked_for(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    asked = []

    def download(repo_id: str, *, revision: str, token: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision, token, sorted(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert are_equal(random_encoder(), DNGEncoder.from_pretrained("someone/encoder", revision="v2", token="mine"))
    assert asked == [("someone/encoder", "v2", "mine", ["README.md", "config.json", "model.safetensors"])]


def test_a_local_folder_goes_before_a_hub_id_of_the_same_name(
    pushed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "someone").mkdir()
    folder.rename(folder.parent / "someone" / "encoder")
    assert are_equal(random_encoder(), DNGEncoder.from_pretrained("someone/encoder"))


def test_offline_the_hub_refuses_in_one_line() -> None:
    assert "someone/encoder" in refusal("someone/encoder")  # conftest.py sets HF_HUB_OFFLINE
    with pytest.raises(CheckpointError, match="'someone/encoder' can't be pushed .*hf auth login") as caught:
        random_encoder().push_to_hub("someone/encoder")
    assert "\n" not in str(caught.value)


def test_a_broken_connection_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise hub.HTTPError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(HfApi, "create_repo", fail)
    assert "no route to host" in refusal("someone/encoder")
    with pytest.raises(CheckpointError, match="no route to host"):
        random_encoder().push_to_hub("someone/encoder")


@pytest.mark.parametrize("source", ["bas", "weights/none.safetensors", "/no/where", "a/b/c"])
def test_what_is_neither_there_nor_a_hub_id_is_refused(source: str) -> None:
    assert f"'{source}'" in refusal(source) and '"base"' in refusal(source)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    assert f"has no {missing}" in refusal(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "truncated or corrupt" in refusal(folder)


@pytest.mark.parametrize(("text", "problem"), [("{", "no JSON"), ('{"hidden": 24}', "header"), ("[1]", "header")])
def test_a_wrong_config_beside_the_weights_is_refused(folder: Path, text: str, problem: str) -> None:
    (folder / "config.json").write_text(text)
    assert problem in refusal(folder)


@pytest.mark.parametrize("config", [{"depth": 3}, {"hidden": "48"}, {"hidden": 24}, {"hidden": -1}, [1]])
def test_weights_of_another_version_are_refused(tmp_path: Path, config: object) -> None:
    write_tensors(tmp_path / "e.safetensors", random_encoder().state_dict(), {"config": json.dumps(config)})
    message = refusal(tmp_path / "e.safetensors")
    assert "no encoder of this version" in message and "update dnge_compress" in message


def test_weights_that_lack_a_tensor_are_refused_by_its_name(tmp_path: Path) -> None:
    tensors = random_encoder().state_dict()
    del tensors["back.norm.weight"]
    config = json.loads('{"hidden": 48}')
    hub.write(tmp_path / "e.safetensors", tensors, config, {})
    assert "'back.norm.weight'" in refusal(tmp_path / "e.safetensors")


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "holds no encoder" in refusal(tmp_path / "other.safetensors")


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["ahead.mix.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    assert "'ahead.mix.bias'" in refusal(folder) and "NaN" in refusal(folder)


def test_a_file_is_no_place_for_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        random_encoder().save_pretrained(folder / "config.json")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nowhere").write_text("a file in the way", encoding="utf-8")
    with pytest.raises(CheckpointError, match="choose another place"):
        random_encoder().save_pretrained(tmp_path / "nowhere" / "e.safetensors")


def test_a_file_name_is_no_hub_id_to_push_to() -> None:
    with pytest.raises(CheckpointError, match="hub id"):
        random_encoder().push_to_hub("someone/e.safetensors")
