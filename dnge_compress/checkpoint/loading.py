"""Open a model to compress; load a compressed one: plainly if its widths are even, else by replaying its plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from dnge_compress.checkpoint.aux_files import aux_files
from dnge_compress.checkpoint.carried import attach, carried
from dnge_compress.checkpoint.compression import BASE_CONFIG, INPUTS, PLAN, REPORT, VOCABULARY, Compression
from dnge_compress.checkpoint.model_files import are_weights_safe, locate, read_config, weight_files
from dnge_compress.checkpoint.outlines import inputs_of
from dnge_compress.checkpoint.plausible import refuse_implausible
from dnge_compress.checkpoint.strict_loading import class_of, quiet, read, refuse_foreign, without_pooler
from dnge_compress.core.errors import CheckpointError, DngeError, UnsupportedModelError, first_line
from dnge_compress.core.files import read_text, refuse_unreadable
from dnge_compress.core.folders import path_of, whole_folder
from dnge_compress.core.strict_json import read_json
from dnge_compress.core.verbs import verb
from dnge_compress.core.wrappers import unwrapped
from dnge_compress.graph.cuts import AppliedCuts
from dnge_compress.graph.families import build_graph
from dnge_compress.graph.vocabulary import vocabulary_graph
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.vocabulary_plan import VocabularyPlan
from dnge_compress.report.report import Report
from dnge_compress.surgery.cut import cut
from dnge_compress.surgery.vocabulary import cut_vocabulary

MOST_PRUNED = 250  # times as large as what is left of it, a base may have been


@verb
def open_model(
    source: str | Path,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """The Hugging Face model of a folder or hub id, in eval mode, as the class its config names in `architectures`.

    A config that names no class is read as `AutoModel`. `dtype` is the checkpoint's own by default, the device the
    CPU. A compressed model of uneven widths comes back through `load`.

    Raises CheckpointError for a folder that is missing, pickled (unless `allow_pickle`), truncated, or whose weights
    don't match its config; UnsupportedModelError or WeightError for adapters, quantized weights, unknown classes and
    custom code (unless `trust_remote_code`).

        model = open_model("./all-MiniLM-L6-v2")
    """
    folder = locate(whole_folder(path_of(source, "open_model")), allow_pickle)
    aux_files(folder)  # refused now rather than when they are copied
    found = compression_in(folder)
    if found is not None and found.is_uneven:
        model = _load(folder, None, trust_remote_code, dtype)
    else:
        model = read(folder, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, dtype=dtype)
    return model if device is None else model.to(device)


def opened(model: Any) -> nn.Module:
    """The model of a folder or hub id, or one that was passed, out of what it was wrapped in.

    Raises UnsupportedModelError for one whose folder holds another tokenizer than it has by now.
    """
    if isinstance(model, str | Path):
        return open_model(model)
    found = unwrapped(model)
    attached = getattr(found, "dnge", None)
    if isinstance(attached, Compression) and attached.tokenizer is not None:
        raise UnsupportedModelError(
            f"the smaller tokenizer of this {type(found).__name__} is in memory only; save it, and pass the folder"
        )
    return found


@verb
def load(path: str | Path, *, model: nn.Module | None = None, trust_remote_code: bool = False) -> nn.Module:
    """The compressed model that `save` wrote to `path`, with its plan and report as `.dnge`, in eval mode.

    `model` is a fresh instance of the base, needed for (and only for) modules that are no Hugging Face models; it is
    left as it is. Raises CheckpointError for a folder that isn't ours or doesn't hold together, or a wrong base.

        small = load("out")
    """
    return _load(locate(whole_folder(path_of(path, "load"))), model, trust_remote_code, None)


def compression_in(folder: Path) -> Compression | None:
    """What a folder that dnge saved tells of its model, or the config of one that somebody else saved; None for any
    other folder."""
    plan = PrunePlan.from_json(read_text(folder / PLAN), f"'{folder / PLAN}'") if (folder / PLAN).is_file() else None
    vocabulary: VocabularyPlan | None = None
    if (folder / VOCABULARY).is_file():
        vocabulary = VocabularyPlan.from_json(read_text(folder / VOCABULARY), f"'{folder / VOCABULARY}'")
    if plan is None and vocabulary is None:
        return carried(folder)
    report = Report.read(folder / REPORT) if (folder / REPORT).is_file() else None
    base_config = read_json(folder / BASE_CONFIG) if (folder / BASE_CONFIG).is_file() else None
    drawn = folder / INPUTS
    is_replayed = plan is not None and (plan.uneven or not (folder / "config.json").is_file())
    inputs = inputs_of(read_json(drawn), f"'{drawn}'") if is_replayed and drawn.is_file() else None
    return Compression(plan=plan, report=report, base_config=base_config, vocabulary=vocabulary, inputs=inputs)


def _load(
    folder: Path, instance: nn.Module | None, trust_remote_code: bool, dtype: str | torch.dtype | None
) -> nn.Module:
    found = compression_in(folder)
    if found is None:
        raise CheckpointError(
            f"'{folder}' has no {PLAN}: not saved by dnge_compress.save; open_model reads plain models"
        )
    if not (folder / "config.json").is_file():
        if instance is None:
            raise CheckpointError(f"'{folder}' holds a plain module; pass a fresh instance of its base as model=…")
        model: Any = _replay(folder, copy.deepcopy(unwrapped(instance)), found)
    elif instance is not None:
        raise CheckpointError(f"'{folder}' holds a Hugging Face model, which needs no base instance; leave model= out")
    elif found.is_uneven:
        model = _replay(folder, _base(folder, found.base_config, trust_remote_code, dtype), found)
        model.name_or_path = model.config.name_or_path = str(folder)
    else:
        model = read(folder, trust_remote_code=trust_remote_code, dtype=dtype)
    attach(model, found)
    return model.eval()


def _base(
    folder: Path, base_config: Mapping[str, Any] | None, trust_remote_code: bool, dtype: str | torch.dtype | None
) -> PreTrainedModel:
    """The base model's skeleton; its values are those of a fresh initialisation and get replaced."""
    if base_config is None:
        raise CheckpointError(f"'{folder / BASE_CONFIG}' is missing, so its plan can't be replayed; save it again")
    raw = read_config(folder)
    refuse_foreign(folder, raw, trust_remote_code)
    cls = class_of(folder, raw, trust_remote_code)
    try:
        config = AutoConfig.for_model(**base_config)
        if are_weights_safe(folder, allow_pickle=False) and not trust_remote_code:
            refuse_implausible(folder, config, cls, weight_files(folder), MOST_PRUNED)
        # Built really, not on the meta device: tables that no checkpoint holds (rotary frequencies) are computed.
        with quiet(), torch.random.fork_rng(devices=[]):
            return cls._from_config(config, dtype=_dtype_of(dtype, raw))
    except DngeError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as e:
        raise CheckpointError(f"'{folder / BASE_CONFIG}' describes no {cls.__name__}: {first_line(e)}") from e


def _replay(folder: Path, model: nn.Module, compression: Compression) -> Any:
    """Cut `model` as the plans say, then give it the weights of the folder, all of them."""
    plan, vocabulary = compression.plan, compression.vocabulary
    if plan is None:
        raise CheckpointError(f"'{folder / PLAN}' is missing, so it can't be replayed; save the model again")
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"'{folder}' has no weights; save the model again")
    for file in files:
        refuse_unreadable(file)
    try:
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except Exception as e:  # safetensors' own error or one of the file system
        raise CheckpointError(f"'{folder}' holds truncated or corrupt weights ({first_line(e)}); save it again") from e
    if isinstance(model, PreTrainedModel) and not any(name.startswith("pooler.") for name in weights):
        without_pooler(model)
    graph = build_graph(model, compression.inputs)
    if graph.fingerprint != plan.base:
        raise CheckpointError(
            f"the plan in '{folder}' was made for another base (fingerprint {plan.base}) than this "
            f"{type(model).__name__} ({graph.fingerprint}); pass the base it was made for"
        )
    cut(model, AppliedCuts(graph, plan.cuts))
    if vocabulary is not None:
        cut_vocabulary(model, vocabulary_graph(model), vocabulary.keep)
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
        for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
            if source in weights:
                weights.setdefault(target, weights[source])
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as e:
        raise CheckpointError(f"the weights in '{folder}' don't fit its plan: {' '.join(str(e).split())[:300]}") from e
    return model


def _dtype_of(dtype: str | torch.dtype | None, raw: Mapping[str, Any]) -> torch.dtype:
    name = raw.get("dtype") or "float32" if dtype in (None, "auto") else dtype
    return name if isinstance(name, torch.dtype) else getattr(torch, str(name))
