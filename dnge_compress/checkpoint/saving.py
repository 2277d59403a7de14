"""Save a compressed model whole or not at all: written beside the target, read back, compared, moved into place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dnge_compress.checkpoint.aux_files import Base, copy_aux_files, origin_of
from dnge_compress.checkpoint.card import model_card
from dnge_compress.checkpoint.carried import without_plan
from dnge_compress.checkpoint.compression import BASE_CONFIG, INPUTS, PLAN, REPORT, VOCABULARY, Compression
from dnge_compress.checkpoint.file_names import CHECKPOINT_FILES
from dnge_compress.checkpoint.loading import load
from dnge_compress.checkpoint.model_files import WEIGHTS
from dnge_compress.checkpoint.outlines import outline
from dnge_compress.checkpoint.strict_loading import quiet, read
from dnge_compress.checkpoint.targets import refuse_target
from dnge_compress.checkpoint.weight_checks import check_weights
from dnge_compress.core.errors import CheckpointError, ExactnessError, first_line
from dnge_compress.core.files import umask
from dnge_compress.core.folders import atomic_folder, refuse_unspeakable
from dnge_compress.core.processes import one_process_writes
from dnge_compress.core.verbs import verb
from dnge_compress.core.wording import kind
from dnge_compress.core.wrappers import unwrapped
from dnge_compress.signals.inference import call, device_of, inference_mode_of, to_device
from dnge_compress.surgery.placement import is_spread, spread_like

TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@verb
def save(model: nn.Module, path: str | Path, *, force: bool = False) -> Path:
    """Write a compressed model to the folder `path`, with tokenizer, plan, report and model card. Returns the path.

    `torch.compile` and data parallelism around it are taken off. The checkpoint is read back and its outputs compared
    with the model's before it takes its place, in one move; until then whatever stood at `path` stays. Files that dnge
    wrote are replaced if nobody changed them, with `force` all that are named as a checkpoint's are; a folder that
    holds anything else is refused, and so is that of the base model. A module that is no Hugging Face model is saved
    as weights and plan.

    Raises CheckpointError for a folder that must not be replaced or can't be written, WeightError for weights that
    aren't finite, ExactnessError if the saved model isn't the one in memory; all leave nothing behind.

        save(compress(model), "out")
    """
    if not isinstance(path, str | Path):
        raise CheckpointError(f'a {kind(path)} is no path: save(model, "folder")')
    model = unwrapped(model)
    compression = getattr(model, "dnge", None)
    if not isinstance(compression, Compression):
        raise CheckpointError(
            f"this {type(model).__name__} wasn't compressed (it has no .dnge); use its own save method"
        )
    if isinstance(model, PreTrainedModel) and compression.is_uneven and compression.base_config is None:
        raise CheckpointError("an uneven plan is replayed on the base's config, but model.dnge.base_config is None")
    with one_process_writes() as is_mine:
        return _save(model, compression, Path(path), force) if is_mine else Path(path).expanduser().resolve()


def _save(model: nn.Module, compression: Compression, path: Path, force: bool) -> Path:
    check_weights(model)
    refuse_unspeakable(path)
    target, base = path.expanduser().resolve(), origin_of(model)
    refuse_target(target, force, base=base.folder)
    try:
        with atomic_folder(target, CHECKPOINT_FILES if force else ()) as stage:
            _write(model, compression, base, stage)
            _verify(model, compression, stage)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"'{target}' can't be written ({first_line(e)}); nothing was changed") from e
    return target


def _write(model: nn.Module, compression: Compression, base: Base, stage: Path) -> None:
    copied, left_out = copy_aux_files(base, stage, compression.tokenizer_files)
    if isinstance(model, PreTrainedModel):
        with quiet(), without_plan(model):
            try:
                # The names on the hub may differ from the model's own; a replayed plan needs the model's own.
                model.save_pretrained(stage, save_original_format=not compression.is_uneven)
            except (RuntimeError, ValueError, TypeError) as e:
                raise CheckpointError(f"transformers can't save this {type(model).__name__}: {first_line(e)}") from e
    else:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, stage / WEIGHTS, metadata={"format": "pt"})
    is_replayed = compression.is_uneven or not isinstance(model, PreTrainedModel)
    if is_replayed and compression.inputs is not None:  # the replay may have to trace the base again
        (stage / INPUTS).write_text(outline(compression.inputs) + "\n", encoding="utf-8")
    for name, plan in ((PLAN, compression.plan), (VOCABULARY, compression.vocabulary)):
        if plan is not None:
            (stage / name).write_text(plan.to_json(), encoding="utf-8")
    if compression.report is not None:
        _write_json(stage / REPORT, compression.report.to_dict())
    if compression.base_config is not None:
        _write_json(stage / BASE_CONFIG, dict(compression.base_config))
    for file in stage.rglob("*.safetensors"):  # its writer leaves them to the owner alone
        file.chmod(0o666 & ~umask())
    card = model_card(model, compression, base, copied, left_out)
    (stage / "README.md").write_text(card, encoding="utf-8")


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _verify(model: nn.Module, compression: Compression, stage: Path) -> None:
    """Read the checkpoint back as a user would; its weights must be the model's, and so must its outputs."""
    if not isinstance(model, PreTrainedModel):
        _compare_weights(model.state_dict(), load_file(stage / WEIGHTS))
        return
    trusted = type(model).is_remote_code()
    if compression.is_uneven:
        reloaded: Any = load(stage, trust_remote_code=trusted)
    else:
        reloaded = read(stage, trust_remote_code=trusted, model_class=type(model))
    if reloaded.config._attn_implementation != model.config._attn_implementation:
        reloaded.set_attn_implementation(model.config._attn_implementation)
    _compare_weights(model.state_dict(), reloaded.state_dict())
    if compression.inputs is not None:
        if is_spread(model):
            spread_like(reloaded, model)
        else:
            reloaded.to(device_of(model))
        _compare_outputs(model, reloaded, compression)


def _compare_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    strangers = set(ours) ^ set(theirs)
    if strangers:
        raise ExactnessError(f"'{min(strangers)}' was lost or invented while saving; nothing was saved")
    for name, tensor in ours.items():
        if not torch.equal(tensor.detach().cpu().to(theirs[name].dtype), theirs[name]):
            raise ExactnessError(f"'{name}' was saved with other values than those in memory; nothing was saved")


def _compare_outputs(model: nn.Module, reloaded: nn.Module, compression: Compression) -> None:
    inputs = to_device(compression.inputs, device_of(model))
    _align_tables(model, reloaded)
    with inference_mode_of(model), torch.no_grad():
        ours, theirs = call(model, inputs), call(reloaded, inputs)
    if torch.equal(ours, theirs):
        return
    bound = TOLERANCES.get(ours.dtype, 1e-5)
    apart = float("inf")
    if ours.shape == theirs.shape:
        apart = float((ours.double() - theirs.double()).abs().max() / ours.double().abs().max().clamp_min(1e-30))
    if not apart <= bound:  # NaN included
        raise ExactnessError(
            f"the saved model's outputs differ from those of the model in memory by {apart:.1e} relative "
            f"(bound {bound:.0e}); nothing was saved"
        )


def _align_tables(model: nn.Module, reloaded: nn.Module) -> None:
    """Give unsaved buffers the dtype they have in memory: `model.to(bfloat16)` rounds rotary tables too."""
    saved = model.state_dict().keys()
    tables = dict(model.named_buffers())
    for name, buffer in list(reloaded.named_buffers()):
        if name in tables and name not in saved:
            owner, _, leaf = name.rpartition(".")
            setattr(reloaded.get_submodule(owner), leaf, buffer.to(tables[name].dtype))
