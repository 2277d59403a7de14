"""What is fed to which part of the package: kinds of files and words that users hand over, and sound ones of each."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnge_compress import apply, compress, load, open_model, plan_vocabulary, save
from dnge_compress.checkpoint.model_files import are_weights_safe, read_config
from dnge_compress.checkpoint.outlines import inputs_of
from dnge_compress.checkpoint.strict_loading import quiet, read
from dnge_compress.cli.grammar import parser
from dnge_compress.core.strict_json import read_json
from dnge_compress.data.reading import read_rows
from dnge_compress.data.sources import source_of
from dnge_compress.data.texts import texts_in
from dnge_compress.encoder.model import DNGEncoder
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.jobs.folder import JobFolder
from dnge_compress.jobs.report.job_report import JobReport
from dnge_compress.lora.plan import LoraPlan
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.vocabulary_plan import VocabularyPlan
from dnge_compress.recipes import library
from dnge_compress.recipes.yaml_lines import parse
from dnge_compress.report.report import Report
from dnge_compress.signals.tokenizer import needed_tokenizer

Read = Callable[[bytes], Any]


@dataclass(frozen=True)
class Target:
    """Sound documents of a kind, its form, and what reads one; `code` is the functions to watch for coverage."""

    seeds: list[bytes]
    form: str
    read: Read
    code: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Kind:
    """How many inputs of a kind are tried, and what makes the target from a folder with all files of the setting."""

    usual: int
    make: Callable[[Path], Target]


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "surrogateescape")


def _plans(folder: Path) -> Target:
    graph = build_graph(read(folder / "llama"))

    def use(payload: bytes) -> None:
        plan = PrunePlan.from_json(_text(payload))
        str(plan)
        plan.to_json()
        AppliedCuts(graph, plan.cuts)
        library.validate(plan.recipe)

    names = ("plan.json", "out/dnge_plan.json", "uneven/dnge_plan.json")
    return Target([(folder / name).read_bytes() for name in names], "json", use, (PrunePlan.from_json,))


def _lora_plans(folder: Path) -> Target:
    model = read(folder / "llama")

    def use(payload: bytes) -> None:
        plan = LoraPlan.from_json(_text(payload))
        str(plan)
        plan.to_json()
        plan.export()
        plan.verify(model)

    return Target([(folder / "lora.json").read_bytes()], "json", use)


def _vocabulary_plans(folder: Path) -> Target:
    def use(payload: bytes) -> None:
        plan = VocabularyPlan.from_json(_text(payload))
        str(plan)
        plan.to_json()

    return Target([(folder / "words" / "dnge_vocabulary.json").read_bytes()], "json", use)


def _recipes(folder: Path) -> Target:
    file = folder / "mine.yaml"

    def use(payload: bytes) -> None:
        file.write_bytes(payload)
        library.load(file)

    seeds = [library.text(name).encode() for name in library.names()]
    return Target([*seeds, (folder / "job.yaml").read_bytes()], "text", use, (parse, library.load))


def _overrides(folder: Path) -> Target:
    kinds = ("prune/default", "lora/default", "jobs/prune-recover")

    def use(payload: bytes) -> None:
        name, *words = _text(payload).split("\0")
        kind = kinds[len(name) % 3]
        library.load(kind, library.assignments(words or [name]))

    words = (
        "ratio=0.3",
        "prune.kinds=[neuron, head]",
        "datasets=[{path: a, type: text}]",
        "~prune",
        "calibration.seed=3",
        "lora.budget={match_uniform_r: 4}",
        "train.learning_rate=1e-4",
        "datasets.0.path=x",
        "protected=['*.0.*']",
        "calibration.prompts=['a, b', c]",
        "allocation=global",
        "train.max_steps=null",
        "save.flat_adapter=true",
    )
    seeds = ["\0".join(("x" * i, *words[i % 5 :: 3])).encode() for i in range(6)]
    return Target([*seeds, *(f"{'x' * i}\0{w}".encode() for w in words for i in range(3))], "text", use)


def _command_lines(folder: Path) -> Target:
    grammar = parser()

    def use(payload: bytes) -> None:
        with suppress(SystemExit):  # of --help and --version
            grammar.parse_args(_text(payload).split("\0"))

    lines = (
        "compress MODEL -o OUT --ratio 0.3 --set a=b",
        "plan MODEL -o plan.json",
        "run RECIPE a=b --json",
        "vocabulary MODEL --data t.txt --round-to 8 --scripts Latin",
        "recipes cp prune/default x.yaml --force",
    )
    return Target(["\0".join(shlex.split(line)).encode() for line in lines], "text", use)


def _headers(folder: Path) -> Target:
    file = folder / "llama" / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")

    def use(payload: bytes) -> None:
        at = payload.find(b"\0\0\0\0")
        size = len(payload) if payload[:1] in (b"{", b"[") or at < 0 else int.from_bytes(payload[:8], "little")
        file.write_bytes(
            size.to_bytes(8, "little") + payload + whole[8 + length :] if size == len(payload) else payload
        )
        are_weights_safe(folder / "llama", allow_pickle=False)

    return Target([whole[8 : 8 + length], whole[8 : 8 + length]], "json", use)


def _indices(folder: Path) -> Target:
    place = folder / "llama"
    (place / "model.safetensors").rename(place / "part.safetensors")
    (folder / "outside.safetensors").write_bytes((place / "part.safetensors").read_bytes())
    index = {"metadata": {"total_size": 3}, "weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}

    def use(payload: bytes) -> None:
        (place / "model.safetensors.index.json").write_bytes(payload)
        are_weights_safe(place, allow_pickle=False)

    return Target([json.dumps(index).encode()], "json", use)


def _configs(folder: Path) -> Target:
    return _of_config(folder, "json", read)


def _torn_configs(folder: Path) -> Target:
    return _of_config(folder, "text", read_config)


def _of_config(folder: Path, form: str, reader: Callable[[Path], object]) -> Target:
    file = folder / "llama" / "config.json"

    def use(payload: bytes) -> None:
        file.write_bytes(payload)
        reader(file.parent)

    return Target([file.read_bytes()], form, use)


def _tokenizers(folder: Path) -> Target:
    place = folder / "llama"
    names = ("tokenizer.json", "tokenizer_config.json")
    whole = {name: (place / name).read_bytes() for name in names}

    def use(payload: bytes) -> None:
        for name in names:
            (place / name).write_bytes(whole[name])
        is_config = b'"tokenizer_class"' in payload and b'"merges"' not in payload
        (place / names[is_config]).write_bytes(payload)
        with quiet():
            needed_tokenizer(str(place), "to read with")

    return Target(list(whole.values()), "json", use)


def _rows(folder: Path) -> Target:
    with quiet():
        tokenizer, model = needed_tokenizer(str(folder / "llama"), "to read with"), open_model(folder / "llama")
    suffixes = {b"{": ".jsonl", b"[": ".json", b"t": ".csv", b"P": ".parquet"}

    def use(payload: bytes) -> None:
        file = folder / f"data{suffixes.get(payload[:1], '.txt')}"
        file.write_bytes(payload)
        source = source_of(file)
        if source.type != "messages":
            read_rows([source], tokenizer, max_length=16, packing=len(payload) % 2 == 0, folder=folder)
        for _ in texts_in(file, model):
            pass

    lines = (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)[:3]
    pairs = b'{"prompt": "w1 w2", "completion": "w3"}\n{"prompt": "", "completion": "w4"}\n'
    chat = b'{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}\n'
    table = b'text,other\n"w1, w2",3\nw4,""\n'
    return Target(
        [b"".join(lines), pairs, chat, json.dumps([{"text": "w1"}]).encode(), table, b"w1 w2\nw3\n", *_parquet(folder)],
        "text",
        use,
    )


def _parquet(folder: Path) -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["w1 w2", "w3", None]}), folder / "made.parquet")
    return [(folder / "made.parquet").read_bytes()] * 2


def _reports(folder: Path) -> Target:
    file = folder / "report.json"

    def use(payload: bytes) -> None:
        file.write_bytes(payload)
        if b"dnge_job_report" in payload:
            str(JobReport.from_dict(read_json(file)))
        else:
            str(Report.read(file))

    return Target([(folder / name / "dnge_report.json").read_bytes() for name in ("out", "uneven")], "json", use)


def _job_states(folder: Path) -> Target:
    job = JobFolder(folder)

    def use(payload: bytes) -> None:
        job.state.write_bytes(payload)
        job.done("train")
        job.threads  # noqa: B018

    state = {"dnge_job": 1, "identity": "a", "threads": 2, "stages": {"data": {"seconds": 1.0}, "train": {"loss": 2}}}
    return Target([json.dumps(state).encode()], "json", use)


def _outlines(folder: Path) -> Target:
    def use(payload: bytes) -> None:
        file = folder / "inputs.json"
        file.write_bytes(payload)
        inputs_of(read_json(file), "the outline")

    one = {"shape": [2, 3], "dtype": "float32"}
    return Target(
        [json.dumps(o).encode() for o in ({"tensor": one}, {"tuple": [one]}, {"dict": {"x": one}})], "json", use
    )


def _encoders(folder: Path) -> Target:
    from safetensors.torch import save_file

    file = folder / "encoder.safetensors"
    base = DNGEncoder.from_pretrained("base")
    base.save_pretrained(folder / "encoder")
    header = (folder / "encoder" / "config.json").read_bytes()
    weights = {k: v.clone() for k, v in base.state_dict().items()}

    def use(payload: bytes) -> None:
        save_file(weights, file, {"config": payload.decode("utf-8", "replace"), "provenance": "{}"})
        DNGEncoder.from_pretrained(file)

    return Target([header], "json", use)


def _saved(folder: Path) -> Target:
    place = folder / "uneven"
    marks = {"dnge_plan.json": b'"dnge_plan"', "dnge_report.json": b'"timings"', "config.json": b'"architectures"'}
    whole = {name: (place / name).read_bytes() for name in (*marks, "dnge_base_config.json")}

    def use(payload: bytes) -> None:
        for name, content in whole.items():
            (place / name).write_bytes(content)
        name = next((name for name, mark in marks.items() if mark in payload), "dnge_base_config.json")
        (place / name).write_bytes(payload)
        load(place)

    return Target(list(whole.values()), "json", use)


def _beside(folder: Path) -> tuple[Path, list[bytes], Read]:
    """The folder of a model, its JSON files, and what puts one of them into its place, the others being sound."""
    place = folder / "llama"
    marks = {
        "config.json": b'"model_type"',
        "generation_config.json": b'"transformers_version"',
        "tokenizer_config.json": b'"tokenizer_class"',
    }
    whole = {name: (place / name).read_bytes() for name in (*marks, "tokenizer.json")}

    def put(payload: bytes) -> None:
        for name, content in whole.items():
            (place / name).write_bytes(content)
        (place / next((name for name, mark in marks.items() if mark in payload), "tokenizer.json")).write_bytes(payload)

    return place, list(whole.values()), put


def _compressions(folder: Path) -> Target:
    place, seeds, put = _beside(folder)

    def use(payload: bytes) -> None:
        put(payload)
        with quiet():
            save(compress(place, "prune/neurons", tokens=64, length=16, scorer="magnitude"), folder / "new", force=True)

    return Target(seeds, "json", use)


def _trims(folder: Path) -> Target:
    place, seeds, put = _beside(folder)

    def use(payload: bytes) -> None:
        put(payload)
        with quiet():
            apply(plan_vocabulary(place, ["w1 w2"]), place)

    return Target(seeds, "json", use)


TARGETS = {
    "plans": Kind(18_000, _plans),
    "LoRA plans": Kind(8_000, _lora_plans),
    "vocabulary plans": Kind(8_000, _vocabulary_plans),
    "recipes": Kind(16_000, _recipes),
    "overrides": Kind(14_000, _overrides),
    "command lines": Kind(3_000, _command_lines),
    "safetensors headers": Kind(8_000, _headers),
    "index files": Kind(5_000, _indices),
    "configs": Kind(3_000, _configs),
    "torn configs": Kind(3_000, _torn_configs),
    "tokenizer files": Kind(4_000, _tokenizers),
    "data rows": Kind(14_000, _rows),
    "reports": Kind(4_000, _reports),
    "records of jobs": Kind(3_000, _job_states),
    "outlines of inputs": Kind(3_000, _outlines),
    "encoders' configs": Kind(1_000, _encoders),
    "saved checkpoints": Kind(800, _saved),
    "files beside a model that is compressed and saved": Kind(300, _compressions),
    "files beside a model that loses tokens": Kind(500, _trims),
}
