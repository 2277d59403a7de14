"""Checkpoints made to do harm: pickles and code that run, paths and links that lead out, sizes that fill the memory.

Every one is opened by the commands in a fork that may write in its trial's folder only, with a gigabyte more than the
libraries take. What would run leaves a mark: a file called `ran`.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reliability_inputs import edited, removed, written
from reliability_setting import CHEAP, HANG, Ended, FileWrites, Row, Setting, difference, dnge, forked, picture
from safetensors.torch import load_file, save_file

MUST = "nothing of it runs, nothing is written elsewhere, within a gigabyte and 45 s, in one line"
LIMIT, MOST_BYTES = 45.0, 1 << 30
SECRET = "the key of the house is under the mat"
HUGE = 10**9


@dataclass(frozen=True)
class Trap:
    """What is set in a folder, and the command that walks into it; `codes` are the exit codes that are right."""

    set_up: Callable[[Path], Any]
    words: tuple[str, ...] = ("compress", "llama", "-o", "new", *CHEAP)
    codes: tuple[int, ...] = (2,)


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per kind of trap."""
    return {kind: partial(_walked, setting, kind) for kind in TRAPS}


def _walked(setting: Setting, kind: str) -> Row:
    failed, largest = [], 0
    for what, trap in TRAPS[kind].items():
        with setting.trial(*(p.name for p in setting.root.iterdir())) as folder:
            (folder.parent / "secret.txt").write_text(SECRET, encoding="utf-8")
            trap.set_up(folder)
            before = picture(folder.parent)
            writes = FileWrites(allowed=(folder, Path("/dev/null")))
            done = forked(_at_home(folder, trap.words), folder, limit=LIMIT, writes=writes, most_bytes=MOST_BYTES)
            wrong = _wrong(folder, trap, done, before)
            largest = max(largest, done.peak_bytes)
            failed += [f"{what}: {wrong}"] if wrong else []
    note = f"at most {largest >> 20:,} MB, the libraries' own included"
    return Row(part="hostile", what="", must=MUST, tried=len(TRAPS[kind]), failed=tuple(failed), note=note)


def _at_home(folder: Path, words: tuple[str, ...]) -> Callable[[], int]:
    """The work of a command whose temporary files are in the trial's folder."""
    import tempfile

    def work() -> int:
        tempfile.tempdir = str(folder)
        return dnge(*words)()

    return work


def _wrong(folder: Path, trap: Trap, done: Ended, before: dict[str, str]) -> str:
    if HANG in done.err:
        return f"no end after {done.seconds:.0f} s"
    if (folder / "ran").exists() or (folder.parent / "ran").exists():
        return "its code ran"
    after = {k: v for k, v in picture(folder.parent).items() if not k.startswith(("work/new", "work/job"))}
    if wrong := difference({k: v for k, v in before.items() if not k.startswith(("work/new", "work/job"))}, after):
        return f"touched or left {wrong}"
    copied = [p for p in (folder / "new").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    if copied:
        return f"a file from elsewhere was copied to {copied[0].name}"
    if done.code not in trap.codes or "Traceback" in done.err or (done.code and len(done.errors) != 1):
        return f"exit code {done.code} after {done.seconds:.0f} s: {done.err.strip()[-300:]}"
    return "control characters reach the terminal" if "\x1b" in done.err else ""


class _Runs:
    """A pickle that runs a command when it is read."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['RELIABILITY_MARK']}",)


def _pickled(name: str, as_zip: bool = False) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        os.environ["RELIABILITY_MARK"] = str(folder / "ran")
        (folder / "llama" / "model.safetensors").unlink()
        if not as_zip:
            (folder / "llama" / name).write_bytes(pickle.dumps({"weight": _Runs()}))
            return
        torch.save({"weight": torch.zeros(1)}, folder / "llama" / name)
        with zipfile.ZipFile(folder / "llama" / name) as old:
            files = {f: old.read(f) for f in old.namelist()}
        with zipfile.ZipFile(folder / "llama" / name, "w") as new:
            for file, content in files.items():
                new.writestr(file, pickle.dumps({"weight": _Runs()}) if file.endswith("data.pkl") else content)

    return put


CODE = "from pathlib import Path\nPath('ran').touch()\n\nclass Own:\n    pass\n"


def _all(*steps: Callable[[Path], Any]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        for step in steps:
            step(folder)

    return run


def _auto_map(file: str, key: str, value: Any = "own.Own", module: str = "own.py") -> Callable[[Path], None]:
    return _all(written(f"llama/{module}", CODE), edited(f"llama/{file}", lambda c: c.update(auto_map={key: value})))


def _linked(name: str, target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        place = folder / name
        if place.is_dir() and not place.is_symlink():
            removed(name)(folder)
        place.unlink(missing_ok=True)
        place.symlink_to(target)

    return link


def _fifo(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def _config(**values: Any) -> Callable[[Path], None]:
    return edited("llama/config.json", lambda c: c.update(values))


def _index(name: Any) -> Callable[[Path], None]:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}

    def put(folder: Path) -> None:
        (folder / "llama" / "model.safetensors").rename(folder / "outside.safetensors")
        path = str(folder / "outside.safetensors") if name == "ABSOLUTE" else name
        index["weight_map"]["model.norm.weight"] = path
        (folder / "llama" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    return put


def _header(header: Any, length: int | None = None) -> Callable[[Path], None]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written("llama/model.safetensors", (len(text) if length is None else length).to_bytes(8, "little") + text)


def _zeros_of(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """A norm of another shape, so that every config that asks for more than there is can be told."""

    def put(folder: Path) -> None:
        tensors = load_file(folder / "llama" / "model.safetensors")
        save_file({**tensors, "model.norm.weight": torch.zeros(shape)}, folder / "llama" / "model.safetensors")

    return put


TEXTS = ("compress", "llama", "-o", "new", "--data", "texts.txt", *CHEAP)
WORDS = ("vocabulary", "llama", "--data", "texts.txt", "-o", "new")
PLACE = ("place", "uneven", "-o", "new.json")
APPLY = ("apply", "plan.json", "llama", "-o", "new")
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)
TRAPS: dict[str, dict[str, Trap]] = {
    "pickles and code": {
        "a pickle": Trap(_pickled("pytorch_model.bin")),
        "a pickle, allowed": Trap(_pickled("pytorch_model.bin"), ("compress", "llama", "-o", "new", "--allow-pickle")),
        "a pickle in torch's format, allowed": Trap(
            _pickled("pytorch_model.bin", as_zip=True), ("compress", "llama", "-o", "new", "--allow-pickle")
        ),
        "model.pt": Trap(_pickled("model.pt"), ("compress", "llama", "-o", "new", "--allow-pickle")),
        "auto_map of a model": Trap(_auto_map("config.json", "AutoModelForCausalLM")),
        "auto_map of a config": Trap(_auto_map("config.json", "AutoConfig")),
        "auto_map of somebody's repository": Trap(_auto_map("config.json", "AutoModel", "evil/repo--own.Own")),
        "auto_map of a tokenizer": Trap(
            _auto_map("tokenizer_config.json", "AutoTokenizer", ["own.Own", None]), TEXTS, (0, 2)
        ),
        "auto_map of a tokenizer, trimmed": Trap(
            _all(
                _auto_map("tokenizer_config.json", "AutoTokenizer", ["own.Own", "own.Own"]),
                edited("llama/tokenizer_config.json", lambda c: c.update(tokenizer_class="Own")),
            ),
            WORDS,
            (0, 2),
        ),
        "auto_map of a tokenizer, in a job": Trap(
            _all(
                _auto_map("tokenizer_config.json", "AutoTokenizer", ["own.Own", "own.Own"]),
                edited("llama/tokenizer_config.json", lambda c: c.update(tokenizer_class="Own")),
            ),
            ("run", "job.yaml", "output_dir=new", "train.max_steps=2"),
            (0, 2),
        ),
        "a custom way to generate": Trap(_all(written("llama/custom_generate/generate.py", CODE)), codes=(0, 2)),
        "a kernel of somebody's": Trap(
            _config(_attn_implementation="evil/kernel", attn_implementation="evil/kernel"), codes=(0, 2)
        ),
        "a class that is none": Trap(_config(architectures=["logging"])),
        "a class with a path": Trap(_config(architectures=["../own.Own"])),
        "a script beside data": Trap(
            _all(written("data/data.py", CODE), lambda f: (f / "rows.jsonl").rename(f / "data" / "train.jsonl")),
            ("run", "job.yaml", "output_dir=new", "datasets=[{path: ./data}]", "train.max_steps=2"),
            (0, 2),
        ),
        "YAML that calls": Trap(
            written("mine.yaml", "recipe: !!python/object/apply:os.system ['touch ran']\n"),
            ("compress", "llama", "-o", "new", "--recipe", "mine.yaml"),
        ),
        "a model card that calls": Trap(
            written("llama/README.md", "---\nlicense: !!python/object/apply:os.system ['touch ran']\n---\n"),
            codes=(0, 2),
        ),
        "a chat template that calls": Trap(
            edited(
                "llama/tokenizer_config.json",
                lambda c: c.update(
                    chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"
                    "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
                ),
            ),
            WORDS,
            (0, 2),
        ),
    },
    "paths and links that lead out": {
        "an index with ..": Trap(_index("../outside.safetensors")),
        "an index with an absolute path": Trap(_index("ABSOLUTE")),
        "an index with a folder": Trap(_index("a/b.safetensors")),
        "modules.json with ..": Trap(written("llama/modules.json", '[{"path": "../beside"}]')),
        "modules.json with an absolute path": Trap(written("llama/modules.json", '[{"path": "/etc"}]')),
        "modules.json of something else": Trap(written("llama/modules.json", '{"path": 3}')),
        "modules.json of numbers": Trap(written("llama/modules.json", "[3]")),
        "a tokenizer that is a link": Trap(_linked("llama/vocab.txt", "../../secret.txt")),
        "a license that is a link": Trap(_linked("llama/LICENSE", "../../secret.txt")),
        "a module's folder that is a link": Trap(
            _all(written("llama/modules.json", '[{"path": "1_Pooling"}]'), _linked("llama/1_Pooling", "../.."))
        ),
        "a config that is a link to zeros": Trap(_linked("llama/config.json", "/dev/zero")),
        "weights that are a link to zeros": Trap(_linked("llama/model.safetensors", "/dev/zero")),
        "a tokenizer that is a pipe": Trap(_fifo("llama/tokenizer.json"), TEXTS),
        "a config that is a pipe": Trap(_fifo("llama/config.json")),
        "an adapter's config that is a pipe": Trap(_fifo("llama/adapter_config.json"), codes=(0, 2)),
        "an old result whose weights are a link": Trap(
            _all(
                lambda f: (f / "out").rename(f / "new"), _linked("new/model.safetensors", "../llama/model.safetensors")
            ),
            codes=(0, 2),
        ),
        "a list of files that aren't ours": Trap(
            _all(
                lambda f: (f / "out").rename(f / "new"),
                written("new/dnge_files.json", '["../beside/thesis.txt", "/etc/passwd"]'),
            )
        ),
        "a plan with .. in its names": Trap(edited("plan.json", lambda p: p["cuts"].update({"../../ran": [0]})), APPLY),
        "a LoRA plan as a plan": Trap(lambda f: (f / "lora.json").replace(f / "plan.json"), APPLY),
        "control characters in names": Trap(_config(architectures=["\x1b[2J\x1b]0;owned\x07"])),
        "control characters in a plan": Trap(edited("plan.json", lambda p: p["cuts"].update({"\x1b[2J": [0]})), APPLY),
    },
    "sizes that fill the memory": {
        "a billion layers": Trap(_config(num_hidden_layers=HUGE)),
        "ten thousand layers": Trap(_config(num_hidden_layers=10_000)),
        "a billion neurons": Trap(_config(intermediate_size=HUGE)),
        "a million neurons": Trap(_config(intermediate_size=10**6)),
        "thirty million neurons": Trap(_config(intermediate_size=3 * 10**7)),
        "a billion hidden": Trap(_config(hidden_size=HUGE)),
        "a billion words": Trap(_config(vocab_size=HUGE)),
        "a billion heads": Trap(_config(num_attention_heads=HUGE, num_key_value_heads=HUGE)),
        "a billion positions": Trap(_config(max_position_embeddings=HUGE), codes=(0, 2)),
        "heads of a billion": Trap(_config(head_dim=HUGE)),
        "a norm of zeros": Trap(_all(_zeros_of((1, 2, 3)), _config(intermediate_size=10**7))),
        "an uneven base with a billion neurons": Trap(
            edited("uneven/dnge_base_config.json", lambda c: c.update(intermediate_size=HUGE)), PLACE
        ),
        "an uneven base with thirty million neurons": Trap(
            edited("uneven/dnge_base_config.json", lambda c: c.update(intermediate_size=3 * 10**7)), PLACE
        ),
        "an uneven base with a billion layers": Trap(
            edited("uneven/dnge_base_config.json", lambda c: c.update(num_hidden_layers=HUGE)), PLACE
        ),
        "a header of a terabyte": Trap(_header({}, length=1 << 40)),
        "a tensor of a trillion": Trap(
            _header({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
        ),
        "a shape that overflows": Trap(
            _header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}})
        ),
        "tensors over each other": Trap(
            _header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"})
        ),
        "a config nested deeply": Trap(written("llama/config.json", "[" * 200_000)),
        "a config with a number of a million digits": Trap(written("llama/config.json", '{"a": ' + "9" * 10**6 + "}")),
        "a plan nested deeply": Trap(written("plan.json", '{"a":' * 100_000), APPLY),
        "a plan that keeps ten million": Trap(
            edited("plan.json", lambda p: p["cuts"].update({"ffn.0": list(range(10**6))})), APPLY
        ),
        "a recipe that laughs": Trap(
            written("mine.yaml", LAUGHS), ("compress", "llama", "-o", "new", "--recipe", "mine.yaml")
        ),
        "a recipe nested deeply": Trap(
            written("mine.yaml", "a: " + "[" * 100_000), ("compress", "llama", "-o", "new", "--recipe", "mine.yaml")
        ),
        "a model card that laughs": Trap(written("llama/README.md", f"---\n{LAUGHS}license: *i\n---\n"), codes=(0, 2)),
        "a model card nested deeply": Trap(
            written("llama/README.md", "---\nlicense: " + "[" * 50_000 + "\n---\n"), codes=(0, 2)
        ),
        "a chat template that fills the memory": Trap(
            edited("llama/tokenizer_config.json", lambda c: c.update(chat_template="{{ 'a' * 10000000000 }}")),
            WORDS,
            (0, 2),
        ),
        "a chat template without end": Trap(
            edited(
                "llama/tokenizer_config.json",
                lambda c: c.update(
                    chat_template="{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
                ),
            ),
            WORDS,
            (0, 2),
        ),
    },
}
