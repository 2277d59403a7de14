"""Checkpoints that are broken or made to do harm: refused before anything is taken, copied or run."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from models import make
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dnge_compress import compress, load, open_model, plan_vocabulary, save
from dnge_compress.checkpoint.plausible import MOST_TIMES, refuse_implausible
from dnge_compress.checkpoint.strict_loading import class_of
from dnge_compress.cli.main import main
from dnge_compress.core.errors import CheckpointError, DataError
from dnge_compress.data.formats import RowFile
from dnge_compress.data.sources import source_of
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.recipes.data_schema import Dataset
from dnge_compress.signals import tokenizer as tokenizers_beside

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
CHEAP: dict[str, Any] = {"scorer": "magnitude", "compensate": "none", "kinds": ["neuron"], "ratio": 0.3}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Folder of a tiny Llama with a tokenizer, to be spoiled."""
    folder = tmp_path / "llama"
    make("llama").save_pretrained(folder)  # type: ignore[operator]
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(58))])}
    backend = Tokenizer(models.WordPiece(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def change(file: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(raw | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 10**9}, "asks for 1,000,000,000 layers, but its weights are"),
        ({"intermediate_size": 10**9}, "parameters, but its weights hold"),
        ({"intermediate_size": 10**6}, "parameters, but its weights hold"),
        ({"vocab_size": 10**9}, "parameters, but its weights hold"),
        ({"intermediate_size": 44}, "has shape"),
    ],
)
def test_a_config_that_asks_for_more_than_its_weights_is_refused_in_time(
    values: dict[str, int], words: str, llama: Path
) -> None:
    change(llama / "config.json", **values)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=words):
        open_model(llama)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("values", [{"num_hidden_layers": 10**9}, {"intermediate_size": 3 * 10**7}])
def test_so_is_the_base_of_an_uneven_model(values: dict[str, int], llama: Path, tmp_path: Path) -> None:
    out = save(
        compress(open_model(llama), **(CHEAP | {"ratio": 0.15}), uneven=True, protected=["model.layers.0.mlp.*"]),
        tmp_path / "out",
    )
    assert load(out).dnge.plan.uneven
    change(out / "dnge_base_config.json", **values)
    with pytest.raises(CheckpointError, match="but its weights"):
        load(out)


def test_a_base_may_have_been_many_times_as_large(llama: Path) -> None:
    config = open_model(llama).config
    cls, files = class_of(llama, {"architectures": ["LlamaForCausalLM"]}, False), [llama / "model.safetensors"]
    refuse_implausible(llama, config, cls, files)
    config.intermediate_size *= 1000
    with pytest.raises(CheckpointError, match="parameters"):
        refuse_implausible(llama, config, cls, files)
    refuse_implausible(llama, config, cls, files, times=1000 // MOST_TIMES)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.model", "1_Pooling"])
def test_a_link_that_leads_out_of_the_folder_is_refused_and_nothing_copied(
    name: str, llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "config.json").write_text("{}", encoding="utf-8")
    (llama / name).symlink_to(tmp_path / "secrets" / ("" if "_" in name else "config.json"))
    (llama / "modules.json").write_text('[{"path": "1_Pooling"}]', encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        open_model(llama)
    plain = type(make("llama")).from_pretrained(llama)  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        save(compress(plain, **CHEAP), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_within_the_folder_and_within_the_hubs_cache_are_fine(llama: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in llama.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)
    (snapshot / "LICENSE").symlink_to("config.json")
    out = save(compress(open_model(snapshot), **CHEAP), tmp_path / "out")
    assert (out / "LICENSE").is_file() and not (out / "LICENSE").is_symlink() and (out / "tokenizer.json").is_file()


@pytest.mark.parametrize("value", [10**30, "LlamaForCausalLM", {"a": 1}, [3], [None]])
def test_architectures_that_are_no_list_of_names_are_told_everywhere(
    value: Any, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(llama / "config.json", architectures=value)
    # Some versions of transformers look themselves, before we can.
    with pytest.raises(CheckpointError, match="should be a list of names|Field 'architectures' with value"):
        open_model(llama)
    told = [f"model_name_or_path={llama}", f"output_dir={tmp_path / 'job'}"]
    assert main(["run", "jobs/prune-recover", *told, "--dry-run"]) == 2
    assert "should be a list of names" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"path": 3}', "[3]", "3", "[null]"])
def test_modules_that_are_none_are_told_before_the_work(text: str, llama: Path) -> None:
    (llama / "modules.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds no list of modules"):
        open_model(llama)


@pytest.mark.parametrize("text", ["[]", "5", "{", '{"model": {"type": "BPE", "vocab": {}, "merges": 3}}'])
def test_a_tokenizer_that_cant_be_read_is_named_where_tokens_should_go(text: str, llama: Path) -> None:
    (llama / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"there is no tokenizer to cut .*llama"):
        plan_vocabulary(llama, ["w1 w2"])


@pytest.mark.parametrize("front", ["license: " + "[" * 50_000, "license: 2001-99-99", "license: [", "license: !!x y"])
def test_a_model_card_that_cant_be_read_is_left_alone(front: str, llama: Path, tmp_path: Path) -> None:
    (llama / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    assert save(compress(open_model(llama), **CHEAP), tmp_path / "out")


def test_a_chat_template_that_does_not_end_is_told(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(llama / "tokenizer_config.json", chat_template=ENDLESS)
    monkeypatch.setattr(tokenizers_beside, "TEMPLATE_SECONDS", 0.3)
    with pytest.raises(DataError, match="the chat template did not end within"):
        compress(llama, scorer="obs", tokens=64, length=16, ratio=0.3)
    with pytest.raises(DataError, match="the chat template did not end within"):
        plan_vocabulary(llama, ["w1 w2"])


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, '{"a":' * 5000])
def test_brackets_and_digits_by_the_thousand_are_no_json(
    text: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|is no JSON|no plan of version"):
        PrunePlan.from_json(text)
    for name in ("rows.jsonl", "rows.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"JSON|must be an object"):
            list(RowFile(tmp_path / name, Dataset(path=name)))
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    assert main(["apply", str(tmp_path / "plan.json"), str(llama), "-o", str(tmp_path / "out")]) == 2
    assert "dnge: error: " in capsys.readouterr().err


def test_a_parquet_file_with_torn_letters_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["wwww", "x"]}), tmp_path / "a.parquet", compression="none")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"wwww", b"\xffwww"))
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(RowFile(tmp_path / "a.parquet", source_of(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    "words",
    [
        ["compress", "LONG", "-o", "new"],
        ["compress", "llama", "-o", "LONG"],
        ["plan", "llama", "-o", "loop"],
        ["compress", "loop", "-o", "new"],
        ["compress", "llama", "-o", "new", "--recipe", "LONG.yaml"],
        ["apply", "LONG", "llama", "-o", "new"],
        ["recipes", "cp", "prune/default", "llama/config.json/x"],
    ],
)
def test_names_that_no_file_can_have_are_bad_input(
    words: list[str], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert main([word.replace("LONG", "x" * 300) for word in words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dnge: error: ")]
    assert len(errors) == 1 and "unexpected" not in errors[0]
    assert any(reason in errors[0] for reason in ("too long", "loop", "symbolic links", "is a file"))


def test_memory_is_not_taken_for_what_is_refused(llama: Path) -> None:
    change(llama / "config.json", intermediate_size=3 * 10**7)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        open_model(llama)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # of 17 GB
