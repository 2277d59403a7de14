"""Bad input: sixty kinds of mistakes on a command line, and some in calls of the library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reliability_setting import CHEAP, Row, Setting, difference, dnge, forked, picture
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import dnge_compress
from dnge_compress.core.errors import DngeError

MUST = "one line with the right cause, the documented exit code, nothing written"
LIMIT = 20.0  # seconds


@dataclass(frozen=True)
class Mistake:
    """A command line, the exit code and words that it must end with; `spoil` makes what it reads bad."""

    words: str
    says: str
    code: int = 2
    spoil: Callable[[Path], Any] = lambda folder: None


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row for the command line, one for the library."""
    return {
        f"{len(MISTAKES)} mistakes on the command line": partial(_commands, setting),
        f"{len(CALLS)} mistakes in Python": partial(_calls, setting),
    }


def _commands(setting: Setting) -> Row:
    failed = []
    for mistake in MISTAKES:
        with setting.trial(*(p.name for p in setting.root.iterdir())) as folder:
            mistake.spoil(folder)
            before = picture(folder)
            words = [
                word
                for part in mistake.words.replace("LONG", "x" * 300).split()
                for word in (CHEAP if part == "CHEAP" else (part,))
            ]
            done = forked(dnge(*words), folder, limit=LIMIT)
            wrong = _wrong(mistake, done.code, done.errors, done.err, difference(before, picture(folder)))
            failed += [f"`dnge {mistake.words}` ({mistake.says}): {wrong}"] if wrong else []
    return Row(part="inputs", what="", must=MUST, tried=len(MISTAKES), failed=tuple(failed))


def _wrong(mistake: Mistake, code: int, errors: list[str], err: str, touched: str) -> str:
    if "Traceback" in err or "unexpected" in err:
        return f"a traceback, or an unexpected error: {err.strip()[-300:]}"
    if len(errors) != 1 or len(errors[0]) > 900:
        return f"{len(errors)} lines with the cause, or a long one: {err.strip()[-300:]}"
    if mistake.says.lower() not in errors[0].lower():
        return f"another cause: {errors[0]}"
    return f"exit code {code}, not {mistake.code}" if code != mistake.code else f"wrote {touched}" if touched else ""


def _calls(setting: Setting) -> Row:
    failed = []
    for says, call in CALLS.items():
        with setting.trial(*(p.name for p in setting.root.iterdir())) as folder:
            before = picture(folder)
            done = forked(partial(_one_line, call, folder), folder, limit=LIMIT)
            touched = difference(before, picture(folder))
            if done.code or says.lower() not in done.out.lower() or touched:
                failed.append(f"{says}: {(done.out + done.err).strip()[-300:]} {touched and 'wrote ' + touched}")
    return Row(
        part="inputs",
        what="",
        must="one line with the right cause, nothing written",
        tried=len(CALLS),
        failed=tuple(failed),
    )


def _one_line(call: Callable[[Path], Any], folder: Path) -> int:
    try:
        call(folder)
    except DngeError as e:
        print(e)
        return int("\n" in str(e) or len(str(e)) > 500)
    print("no error at all")
    return 1


def edited(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """What changes the JSON of a file; `change` works in place, or returns something else."""

    def edit(folder: Path) -> None:
        raw = json.loads((folder / name).read_text(encoding="utf-8"))
        found = change(raw)
        (folder / name).write_text(json.dumps(raw if found is None else found), encoding="utf-8")

    return edit


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    """What puts a file into its place, or fills it anew."""
    data = content.encode() if isinstance(content, str) else content

    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return put


def removed(*names: str) -> Callable[[Path], None]:
    """What takes files or folders away."""

    def take(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return take


def cut_off(name: str) -> Callable[[Path], None]:
    """What leaves the first half of a file."""

    def halve(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return halve


def looped(folder: Path) -> None:
    """Make a link to itself."""
    (folder / "loop").symlink_to("loop")


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """What changes the weights of the model."""

    def alter(folder: Path) -> None:
        tensors = load_file(folder / "llama" / "model.safetensors")
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        change(tensors)
        save_file(tensors, folder / "llama" / "model.safetensors", metadata={"format": "pt"})

    return alter


NORM, HEAD = "model.norm.weight", "lm_head.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 90868376\n"
LLAMA, WEIGHTS, TOKENS = "llama/config.json", "llama/model.safetensors", "llama/tokenizer.json"
MAKE = "compress llama -o new CHEAP"
MISTAKES = (
    # the command line
    Mistake("compress", "arguments are required"),
    Mistake("compres llama -o new", "invalid choice: 'compres'"),
    Mistake("compress llama -o new --ratio much", "invalid float value"),
    Mistake("compress llama -o new --ratio 1.3", "ratio must be at least 0 and below 1", 3),
    Mistake("compress llama -o new --ratio nan", "ratio", 3),
    Mistake("compress llama -o new --ratio 0.95 --set min_keep=0.5 CHEAP", "lower the ratio or min_keep", 3),
    Mistake("compress llama -o new --device gpu CHEAP", "device 'gpu' can't be used"),
    Mistake("compress llama -o new --scorer magnitud", "did you mean 'magnitude'"),
    Mistake("compress llama -o new --scorer fisher", "fisher"),
    # recipes and overrides
    Mistake("compress llama -o new --recipe prune/defalt", "did you mean 'prune/default'"),
    Mistake("compress llama -o new --recipe none.yaml", "does not exist"),
    Mistake("compress llama -o new --recipe lora/default", "is a lora recipe, not a prune recipe"),
    Mistake("compress llama -o new --set ratoi=0.3", "did you mean 'ratio'"),
    Mistake("compress llama -o new --set ratio", "write KEY=VALUE"),
    Mistake("compress llama -o new --set kinds=[neuron", "can't be read"),
    Mistake("compress llama -o new --ratio 0.3 --set ratio=0.4", "stands twice"),
    Mistake("compress llama -o new --set seed=010", "8 or 10"),
    Mistake("compress llama -o new --set protected=[*.layer.0.*] CHEAP", "layer.0"),
    Mistake("compress llama -o new --recipe mine.yaml", "mine.yaml", spoil=written("mine.yaml", "recipe: [prune")),
    Mistake("compress llama -o new --recipe mine.yaml", "aliases", spoil=written("mine.yaml", "a: &b 1\nc: *b\n")),
    Mistake("compress llama -o new --recipe mine.yaml", "mine.yaml", spoil=written("mine.yaml", b"\xff\xfe\x00")),
    Mistake("recipes cp prune/default mine.yaml", "exists"),
    Mistake("recipes show prune/nothing", "unknown recipe"),
    Mistake("recipes validate mine.yaml prune.ratio=[1]", "ratio"),
    # the model
    Mistake("compress none/of/these -o new", "there is no folder"),
    Mistake("compress thesis.txt -o new", "is a file", spoil=written("thesis.txt", "mine")),
    Mistake(MAKE, "has no config.json", spoil=removed(LLAMA)),
    Mistake(MAKE, "config.json", spoil=written(LLAMA, "{")),
    Mistake(MAKE, "no JSON object", spoil=written(LLAMA, "[1]")),
    Mistake(MAKE, "pip install -U transformers", spoil=edited(LLAMA, lambda c: c.update(model_type="mixtrall"))),
    Mistake(MAKE, "Mixtrall", spoil=edited(LLAMA, lambda c: c.update(architectures=["Mixtrall"]))),
    Mistake(MAKE, "has shape", spoil=edited(LLAMA, lambda c: c.update(intermediate_size=44))),
    Mistake(MAKE, "lacks", spoil=edited(LLAMA, lambda c: c.update(num_hidden_layers=4))),
    Mistake(MAKE, "would leave out", spoil=edited(LLAMA, lambda c: c.update(num_hidden_layers=2))),
    Mistake(MAKE, "is quantized", spoil=edited(LLAMA, lambda c: c.update(quantization_config={"quant_method": "x"}))),
    Mistake(MAKE, "trust", spoil=edited(LLAMA, lambda c: c.update(auto_map={"AutoModel": "modeling.Own"}))),
    Mistake(MAKE, "adapter", spoil=written("llama/adapter_config.json", "{}")),
    Mistake(MAKE, "has no weights", spoil=removed(WEIGHTS)),
    Mistake(MAKE, "truncated or corrupt", spoil=cut_off(WEIGHTS)),
    Mistake(MAKE, "git lfs pull", spoil=written(WEIGHTS, POINTER)),
    Mistake(MAKE, "NaN", spoil=weights(lambda w: w[NORM].fill_(float("nan")))),
    Mistake(MAKE, "infinite", spoil=weights(lambda w: w[NORM].fill_(float("inf")))),
    Mistake(MAKE, "quantized", spoil=weights(lambda w: w.update({HEAD: w[HEAD].to(torch.int8)}))),
    Mistake(MAKE, "lacks", spoil=weights(lambda w: w.pop(NORM))),
    # data
    Mistake("compress llama -o new --data none.jsonl CHEAP", "no such file"),
    Mistake("compress llama -o new --data llama CHEAP", "it is a folder"),
    Mistake("compress llama -o new --data beside/thesis.txt CHEAP", "thesis.txt"),
    Mistake("compress llama -o new --data x.docx CHEAP", "is none of", spoil=written("x.docx", "text")),
    Mistake("compress llama -o new --data rows.jsonl CHEAP", "line 2", spoil=written("rows.jsonl", '{"text":"a"}\n{')),
    Mistake("compress llama -o new --data rows.jsonl CHEAP", "its rows need", spoil=written("rows.jsonl", '{"a": 1}')),
    Mistake("compress llama -o new --data rows.jsonl CHEAP", "empty", spoil=written("rows.jsonl", "\n")),
    Mistake("compress llama -o new --data rows.jsonl CHEAP", "UTF-8", spoil=written("rows.jsonl", b'{"text": "\xff"}')),
    Mistake("compress llama -o new --data texts.txt CHEAP", "tokenizer", spoil=removed(TOKENS)),
    # places
    Mistake("compress llama -o beside CHEAP", "which dnge did not write"),
    Mistake("compress llama -o beside CHEAP --force", "never deletes"),
    Mistake("compress llama -o llama CHEAP", "llama"),
    Mistake("compress llama -o texts.txt CHEAP", "is a file"),
    Mistake("compress llama -o /proc/new CHEAP", "can't be written"),
    Mistake("plan llama -o none/plan.json CHEAP", "no such folder"),
    Mistake("plan llama -o lora.json CHEAP", "is a plan of LoRA adapters"),
    Mistake("place llama -o plan.json", "is a plan of what to prune"),
    Mistake("compress LONG -o new CHEAP", "File name too long"),
    Mistake("compress ./LONG -o new CHEAP", "File name too long"),
    Mistake("compress llama -o LONG CHEAP", "File name too long"),
    Mistake("compress llama -o new --data LONG.txt CHEAP", "File name too long"),
    Mistake("compress llama -o new --recipe LONG.yaml", "File name too long"),
    Mistake("apply LONG llama -o new", "File name too long"),
    Mistake("plan llama -o LONG CHEAP", "File name too long"),
    Mistake("recipes cp prune/default LONG", "File name too long"),
    Mistake("report LONG", "File name too long"),
    Mistake("run job.yaml output_dir=LONG", "File name too long"),
    Mistake("run job.yaml model_name_or_path=./LONG", "File name too long"),
    Mistake("run job.yaml datasets.0.path=./LONG", "File name too long"),
    Mistake("vocabulary llama --data LONG -o new", "File name too long"),
    Mistake("compress loop -o new CHEAP", "loop", spoil=looped),
    Mistake("compress llama -o loop CHEAP", "loop", spoil=looped),
    Mistake("plan llama -o loop CHEAP", "loop", spoil=looped),
    Mistake("run job.yaml output_dir=loop", "loop", spoil=looped),
    Mistake("compress llama/config.json/x -o new CHEAP", "x"),
    Mistake("compress llama -o texts.txt/x CHEAP", "texts.txt"),
    Mistake("plan llama -o texts.txt/x CHEAP", "texts.txt"),
    Mistake("recipes cp prune/default texts.txt/x", "its folder is a file"),
    # plans
    Mistake("apply none.json llama -o new", "none.json"),
    Mistake("apply lora.json llama -o new", "is a plan of LoRA adapters"),
    Mistake("apply plan.json llama -o new", "no JSON", spoil=cut_off("plan.json")),
    Mistake("apply plan.json llama -o new", "cuts", spoil=edited("plan.json", lambda p: p.update(cuts=3))),
    Mistake(
        "apply plan.json llama -o new", "ffn.9", spoil=edited("plan.json", lambda p: p["cuts"].update({"ffn.9": [0]}))
    ),
    Mistake(
        "apply plan.json llama -o new", "ffn.0", spoil=edited("plan.json", lambda p: p["cuts"].update({"ffn.0": [99]}))
    ),
    Mistake("apply plan.json out -o new", "another"),
    Mistake("place llama --set trainable_params=3", "smallest", 3),
    Mistake("report llama", "wasn't saved by dnge"),
    Mistake("report out", "dnge_report.json", spoil=written("out/dnge_report.json", "{")),
    # jobs
    Mistake("run jobs/prune-recover", "names no model_name_or_path"),
    Mistake("run job.yaml train.optim=adamm", "did you mean"),
    Mistake("run job.yaml train.report_to=wandbb", "did you mean"),
    Mistake("run job.yaml train.max_length=4096", "64 positions"),
    Mistake("run job.yaml output_dir=beside", "holds no job of ours"),
    Mistake("run job.yaml datasets=[{path:./none.jsonl}]", "none"),
    Mistake("run job.yaml lora.target_modules=[q_projj]", "q_projj"),
    Mistake("run job.yaml train.learning_rate=-1", "learning_rate"),
)


def _model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "llama")


CALLS: dict[str, Callable[[Path], Any]] = {
    "is no torch module": lambda folder: dnge_compress.compress(None),
    "make one of it first": lambda folder: dnge_compress.compress(AutoModelForCausalLM),
    "load them into their module": lambda folder: dnge_compress.compress(_model(folder).state_dict()),
    "ratio must be": lambda folder: dnge_compress.compress(_model(folder), 1.5),
    "not a list": lambda folder: dnge_compress.compress(_model(folder), [0.3]),
    "unknown recipe key": lambda folder: dnge_compress.compress(_model(folder), ratoi=0.3),
    "wasn't compressed": lambda folder: dnge_compress.save(_model(folder), folder / "new"),
    "is no path": lambda folder: dnge_compress.save(_model(folder), 3),  # type: ignore[arg-type]
    "not saved by dnge": lambda folder: dnge_compress.load(folder / "llama"),
    "there is no folder": lambda folder: dnge_compress.load(folder / "none" / "at" / "all"),
    "has no values": lambda folder: dnge_compress.compress(_model(folder).to("meta")),
    "plan": lambda folder: dnge_compress.apply(folder / "thesis.json", _model(folder)),
    "data": lambda folder: dnge_compress.compress(_model(folder), data=[{"nothing": torch.zeros(1)}]),
    "example_inputs": lambda folder: dnge_compress.compress(torch.nn.Sequential(torch.nn.Linear(3, 3))),
}
