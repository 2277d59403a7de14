"""The files of a model folder: found or fetched, present, readable, and nothing that can run code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from dnge_compress.core.errors import CheckpointError, UnsupportedModelError, WeightError, first_line
from dnge_compress.core.files import refuse_unreadable
from dnge_compress.core.folders import whole_folder
from dnge_compress.core.strict_json import read_json
from dnge_compress.recipes.job_schema import CAUSAL
from dnge_compress.recipes.schema import Prune

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FLOATING = ("F16", "BF16", "F32", "F64")
LONGEST_NAME = 200
RESULT = "model"  # the folder in a job's that holds its result
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md"]
HUB_EXTRAS = ["onnx/*", "openvino/*", "coreml/*", "original/*", "consolidated*"]


def locate(source: str | Path, allow_pickle: bool = False) -> Path:
    """The local folder of a model: `source` itself, or the snapshot of a hub id, downloaded if need be."""
    refuse_missing(source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        found = Path(snapshot_download(str(source), allow_patterns=HUB_FILES, ignore_patterns=HUB_EXTRAS))
        if allow_pickle and not any(found.glob("*.safetensors")):
            found = Path(snapshot_download(str(source), allow_patterns=[*HUB_FILES, "pytorch_model*.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        what = f"there is no folder '{source}', and the hub gave no such model ({first_line(e)})"
        raise CheckpointError(f"{what}; correct the name, or download it into a folder") from e
    return found


def refuse_missing(source: str | Path) -> None:
    """Raise CheckpointError for what is no folder and can't be a hub id."""
    folder = whole_folder(Path(source))
    if folder.is_file():
        raise CheckpointError(f"'{source}' is a file; pass the folder that holds it and its config.json")
    if not folder.is_dir() and not HUB_ID.fullmatch(str(source)):
        raise CheckpointError(f"there is no folder '{source}', and it is no hub id (owner/name); correct the name")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, one or sharded; empty if it has none. Raises CheckpointError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise CheckpointError(f"'{folder / INDEX}' has no weight_map; fetch it again")
    names = list(index["weight_map"].values())
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or len(name) > LONGEST_NAME:
            raise CheckpointError(f"'{folder / INDEX}' names {name!r:.80}, which is no file beside it; fetch it again")
    shards = [folder / name for name in sorted(set(names))]
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"'{folder / INDEX}' names '{shard.name}', which is missing; fetch it again")
    return shards


def least_bytes(base: Path, prune: Prune | None) -> float:
    """What the model in a folder takes at least once it is pruned; 0 where its weights are no safetensors."""
    return sum(file.stat().st_size for file in weight_files(base)) * (prune.left("parameters")[0] if prune else 1)


def are_weights_safe(folder: Path, allow_pickle: bool) -> bool:
    """Whether the weights are safetensors, all of them readable and floating-point; False for allowed pickles."""
    files = weight_files(folder)
    for file in files:
        refuse_unreadable(file)
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    _check_header(file, name, tensors.get_slice(name))
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"'{file}' is truncated or corrupt ({first_line(e)}); fetch it again") from e
    if files:
        return True
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED and p.is_file())
    if not pickles:
        raise CheckpointError(f"'{folder}' has no weights: neither {WEIGHTS} nor {INDEX}; fetch it again")
    if not any(p.startswith("pytorch_model") for p in pickles):
        raise CheckpointError(
            f"'{folder}' has only pickled weights ({pickles[0]}), which can run code; save them as {WEIGHTS}, "
            "or as pytorch_model.bin and pass allow_pickle=True (--allow-pickle)"
        )
    for name in pickles:
        refuse_unreadable(folder / name)
    if not allow_pickle:
        raise CheckpointError(
            f"'{folder}' has only pickled weights ({pickles[0]}), which can run code; "
            "if you trust their source, pass allow_pickle=True (--allow-pickle)"
        )
    return False


def read_config(folder: Path) -> dict[str, Any]:
    """The raw `config.json` of a folder. Raises CheckpointError."""
    if not (folder / "config.json").is_file():
        inner = folder / RESULT
        where = f"'{inner}', which has one" if (inner / "config.json").is_file() else "the folder that has one"
        raise CheckpointError(f"'{folder}' has no config.json, so it is no model's; name {where}")
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise CheckpointError(f"'{folder / 'config.json'}' holds no JSON object; fetch it again")
    return raw


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model knows, by its config; None if that doesn't say."""
    found = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return found if isinstance(found, int) else None


def refuse_silent(architecture: str, source: str | Path) -> None:
    """Raise UnsupportedModelError for what writes no text: any class but those of causal language models."""
    if not architecture.endswith(CAUSAL):
        raise UnsupportedModelError(
            f"'{source}' is a {architecture}, which writes no text; name a causal language model (…ForCausalLM)"
        )


def architecture_of(folder: Path, raw: Mapping[str, Any]) -> str | None:
    """The class that a folder's config names; None if it names none. Raises CheckpointError."""
    named = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CheckpointError(f"architectures in the config of '{folder}' should be a list of names, not {named!r:.80}")
    return named[0] if named else None


def _check_header(file: Path, name: str, tensor: Any) -> None:
    is_matrix = "weight" in name.rpartition(".")[2] and len(tensor.get_shape()) > 1
    if is_matrix and tensor.get_dtype() not in FLOATING:
        raise WeightError(
            f"'{name}' in '{file}' is quantized ({tensor.get_dtype()}); "
            "compress the original floating-point model, then quantize"
        )
