"""Read a Hugging Face folder strictly: safetensors only, no custom code, every weight accounted for.

transformers fills what a checkpoint lacks with random numbers and drops what it doesn't know, both with a warning;
here both are errors, apart from heads that the named class does without.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from dnge_compress.checkpoint.model_files import WEIGHTS, architecture_of, are_weights_safe, read_config, weight_files
from dnge_compress.checkpoint.plausible import refuse_implausible
from dnge_compress.core.errors import CheckpointError, UnsupportedModelError, first_line

_WAYS_OUT = (
    "`pip install -U transformers` if it is a new one, correct its config.json if it is misspelled, or in Python build "
    "the module yourself: compress(module, example_inputs=…)"
)


def read(
    folder: Path,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    dtype: str | torch.dtype | None = None,
    model_class: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """The model in `folder`, in eval mode on the CPU, as the class its config names in `architectures`.

    A config that names none is read as `AutoModel`, and then no weight may be left over. Raises CheckpointError,
    UnsupportedModelError or WeightError; see `open_model`.
    """
    raw = read_config(folder)
    refuse_foreign(folder, raw, trust_remote_code)
    if not trust_remote_code:
        _refuse_unknown_type(folder, raw)
    safe = are_weights_safe(folder, allow_pickle)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            cls: Any = model_class or class_of(folder, raw, trust_remote_code)
            if safe and not trust_remote_code:
                refuse_implausible(folder, config, cls, weight_files(folder))
            model, info = cls.from_pretrained(
                folder,
                config=config,
                dtype=dtype or "auto",
                use_safetensors=safe,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # so that they are listed, and refused below
                output_loading_info=True,
            )
        except (CheckpointError, UnsupportedModelError):
            raise
        except Exception as e:  # transformers raises a dozen kinds of error for a bad folder
            raise CheckpointError(f"'{folder}' can't be loaded: {first_line(e)}") from e
    _account(folder, model, info, named=cls is not AutoModel)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def class_of(folder: Path, raw: Mapping[str, Any], trust_remote_code: bool) -> type[Any]:
    """The class that `architectures` names, or AutoModel if it names none."""
    name = architecture_of(folder, raw)
    if name is None:
        return AutoModel
    for reference in raw.get("auto_map", {}).values() if trust_remote_code else ():
        if isinstance(reference, str) and reference.rpartition(".")[2] == name:
            return get_class_from_dynamic_module(reference, str(folder))
    cls = getattr(transformers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise UnsupportedModelError(
            f"'{folder}' is a '{name}', a class that transformers {transformers.__version__} doesn't have; {_WAYS_OUT}"
        )
    return cls


def _refuse_unknown_type(folder: Path, raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"'{folder}' is of the type '{model_type}', which transformers {transformers.__version__} doesn't know; "
            f"{_WAYS_OUT}"
        )


def without_pooler(model: Any) -> bool:
    """Take away the pooler of a base model whose checkpoint has none; False if the class can't do without."""
    if "add_pooling_layer" not in inspect.signature(type(model).__init__).parameters:
        return False
    model.pooler = None
    return True


def refuse_foreign(folder: Path, raw: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Raise UnsupportedModelError for custom code that isn't trusted, quantized weights, adapters and odd layouts."""
    if raw.get("auto_map") and not trust_remote_code:
        raise UnsupportedModelError(
            f"'{folder}' brings its own code (auto_map in config.json); "
            "read it, then pass trust_remote_code=True (--trust-remote-code)"
        )
    quantization = raw.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
        raise UnsupportedModelError(
            f"'{folder}' is quantized ({method}); compress the original floating-point model, then quantize"
        )
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedModelError(f"'{folder}' holds an adapter; merge it into its base model first")
    if raw.get("transformers_weights") or any(folder.glob("shard-*.safetensors")):
        raise UnsupportedModelError(f"'{folder}' keeps its weights in an unusual place; save it as {WEIGHTS} first")


def _account(folder: Path, model: PreTrainedModel, info: Mapping[str, Any], named: bool) -> None:
    for name, there, here in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"'{name}' has shape {tuple(there)} in '{folder}', but its config asks for {tuple(here)}; "
            "one of them is another model's: fetch it again"
        )
    missing = set(info["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing) and without_pooler(model):
        missing = set()
    if missing:
        raise CheckpointError(
            f"'{folder}' lacks {_some(missing)} of {type(model).__name__}, which would be filled with random numbers"
        )
    unknown = {name for name in info["unexpected_keys"] if not (named and _is_spare_head(model, name))}
    if unknown:
        raise CheckpointError(
            f"'{folder}' holds {_some(unknown)}, which {type(model).__name__} would leave out; "
            "correct its config.json (architectures, layer counts)"
        )
    if info["error_msgs"]:
        raise CheckpointError(f"'{folder}' can't be loaded: {info['error_msgs'][0]}")


def _is_spare_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a left-over tensor belongs to a head that the class does without (`cls.seq_relationship`, a pooler).

    It doesn't if it reaches into the trunk or into a layer that the model has: then the config is wrong.
    """
    modules = dict(model.named_modules())
    trunk = model.base_model_prefix
    path = name.removeprefix(f"{trunk}.") if trunk not in modules else name
    parts = path.split(".")
    depth = max(i for i in range(len(parts)) if ".".join(parts[:i]) in modules)
    owner = ".".join(parts[:depth])
    is_layer = owner != "" and not any(modules[owner].children())
    in_trunk = owner not in ("", trunk) and (trunk not in modules or owner.startswith(f"{trunk}."))
    return not is_layer and not in_trunk


def _some(names: set[str]) -> str:
    first = min(names)
    return f"'{first}'" + (f" and {len(names) - 1} more weights" if len(names) > 1 else "")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and bars from transformers: what they warn of is checked and raised here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
