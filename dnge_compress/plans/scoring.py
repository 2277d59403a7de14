"""Scores with all that planning takes beside the model: made once, planned from many times, kept in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dnge_compress.core.errors import CheckpointError, PlanError, first_line
from dnge_compress.core.files import umask
from dnge_compress.core.folders import atomic_folder, path_of, whole_folder
from dnge_compress.core.processes import one_process_writes
from dnge_compress.core.strict_json import json_values
from dnge_compress.core.tensors import owned
from dnge_compress.graph.digest import digest
from dnge_compress.graph.types import ModelGraph, Scores
from dnge_compress.plans.basis import AGAIN, HEADER, MEASURED, Basis, Header, named, refuse_other_content
from dnge_compress.recipes.schema import Recipe
from dnge_compress.scorers import ScoringContext
from dnge_compress.signals.consumers import places_of, reading_at
from dnge_compress.signals.inference import Inputs, device_of, to_device
from dnge_compress.signals.signal import Signal, Signals
from dnge_compress.signals.stored import (
    GATHERED,
    arranged,
    arrangement,
    below,
    gathered_in,
    signal_at,
    tensors_in_batch,
)

SCORES = "scores.safetensors"
FILE_BYTES = 1 << 30  # of signals in one file, about


@dataclass(frozen=True, kw_only=True)
class Scoring(Scores):
    """Scores, the calibration inputs they were made on, and the signals gathered there: plans of any ratio, their
    measured costs and repairs need no more. `notes` are for the report, `data_notes` say what was done to the user's
    data. It holds the model that it was made for.
    """

    context: ScoringContext = field(repr=False, compare=False)
    basis: Basis = field(repr=False, compare=False)
    data_notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write a folder from which `plan`, `apply` and `compress` go on as from this value. Returns the path.

        It takes four bytes for each squared width of the matrices that read what may go. Raises PlanError for a folder
        that holds something else, CheckpointError for one that can't be written.

            score(model).save("scores")
        """
        target = path_of(path, "save").expanduser().resolve()
        refuse_other_content(target)
        signals, context = self.context.signals, self.context
        with one_process_writes() as is_mine:
            if is_mine:
                try:
                    with atomic_folder(target) as stage:
                        self._write(stage, context, signals)
                except (OSError, SafetensorError) as e:
                    raise CheckpointError(f"'{target}' can't be written ({first_line(e)}); make room there") from e
        return target

    def _write(self, stage: Path, context: ScoringContext, signals: Signals) -> None:
        tensors = {f"units/{name}": values for name, values in self.units.items()}
        tensors |= {f"uncorrected/{name}": values for name, values in self.uncorrected.items()}
        for kind, batches in (("batch", context.batches), ("held_out", context.held_out)):
            for i, batch in enumerate(batches):
                tensors |= {f"{kind}/{i}/{name}": value for name, value in tensors_in_batch(batch)}
        _save(tensors, stage / SCORES)
        files: dict[str, str] = {}
        for number, spaces in enumerate(_shards(signals), 1):
            file = f"signals-{number:05d}.safetensors"
            _save(dict(_tensors_of(signals, spaces)), stage / file)
            files |= dict.fromkeys(spaces, file)
        header = Header(
            basis=self.basis,
            notes=self.notes,
            data_notes=self.data_notes,
            batches=tuple(map(arrangement, context.batches)),
            held_out=tuple(map(arrangement, context.held_out)),
            matrices=self.matrices,
            counts={space: tuple(signal.count for signal in own) for space, own in signals.items()},
            files=files,
        )
        text = json.dumps(header.to_dict(), indent=1, ensure_ascii=False)
        (stage / HEADER).write_text(text + "\n", encoding="utf-8")


def scoring_of(scores: Scores, context: ScoringContext, recipe: Recipe, data_notes: tuple[str, ...]) -> Scoring:
    """What a scorer found, with what it was found on."""
    return Scoring(
        **{f.name: getattr(scores, f.name) for f in fields(Scores)},
        context=context,
        basis=basis_of(context, recipe),
        data_notes=data_notes,
    )


def basis_of(context: ScoringContext, recipe: Recipe) -> Basis:
    """What scores of a context rest on."""
    floating = (p for p in context.model.parameters() if p.is_floating_point())
    return Basis(
        base=context.graph.fingerprint,
        weights=digest(context.model),
        dtype=str(next(floating, torch.empty(0)).dtype).removeprefix("torch."),
        scorer=recipe.scorer,
        ridge=recipe.repair.ridge,
        measured=tuple(kind for kind in MEASURED if kind in context.kinds),
        calibration=json_values(recipe.calibration.model_dump()),
        data="" if context.data is None else digest_of((*context.data, *context.held_out)),
    )


def carried_on(scoring: Scoring, context: ScoringContext, recipe: Recipe, origin: str) -> ScoringContext:
    """A context of the same model, maybe another copy of it, that takes inputs and signals from a scoring, which errors
    call `origin`. Raises PlanError for one of another model, recipe or data."""
    scoring.basis.refuse_model(basis_of(context, recipe), origin)
    scoring.basis.refuse_recipe(recipe, origin)
    known, device = vars(scoring.context), device_of(context.model)
    batches = known.get("batches", scoring.context.made if scoring.context.data is None else scoring.context.data)
    batches = None if batches is None else tuple(to_device(batch, device) for batch in batches)
    signals = known.get("signals", scoring.context.gathered)
    is_synthetic = scoring.context.data is None
    return replace(
        context,
        data=None if is_synthetic else batches,
        made=batches if is_synthetic else None,
        held_out=tuple(to_device(batch, device) for batch in scoring.context.held_out),
        gathered=None if signals is None else rebound(signals, context.model, context.graph),
    )


def read_scoring(folder: Path, context: ScoringContext, recipe: Recipe) -> Scoring:
    """The scoring that was saved in a folder, on a model and with the settings of `recipe`. Raises PlanError."""
    header = Header.read(folder)
    header.basis.refuse_recipe(recipe, named(folder))
    header.basis.refuse_model(basis_of(context, recipe), named(folder))
    try:
        return _read(whole_folder(folder), header, context)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as e:
        raise PlanError(f"{named(folder)} are truncated or corrupt ({first_line(e)}); {AGAIN}") from None


def _read(folder: Path, header: Header, context: ScoringContext) -> Scoring:
    device = device_of(context.model)
    with safe_open(folder / SCORES, framework="pt", device=str(device)) as file:
        names = list(file.keys())
        units, uncorrected = (
            {n.removeprefix(kind): file.get_tensor(n).cpu() for n in names if n.startswith(kind)}
            for kind in ("units/", "uncorrected/")
        )
        batches, held_out = (
            tuple(arranged(how, below(f"{kind}/{i}/", file.get_tensor)) for i, how in enumerate(arrangements))
            for kind, arrangements in (("batch", header.batches), ("held_out", header.held_out))
        )
    ordered = {s.name: units[s.name] for s in context.graph.spaces if s.name in units}
    is_synthetic = not header.basis.data
    found = replace(
        context,
        data=None if is_synthetic else batches,
        made=batches if is_synthetic else None,
        held_out=held_out,
        gathered=_signals_in(folder, header, context),
    )
    return Scoring(
        units=ordered,
        scorer=header.basis.scorer,
        fingerprint=header.basis.base,
        matrices=header.matrices,
        notes=header.notes,
        uncorrected=uncorrected,
        context=found,
        basis=header.basis,
        data_notes=header.data_notes,
    )


def _signals_in(folder: Path, header: Header, context: ScoringContext) -> Signals:
    found: dict[str, list[Signal]] = {}
    for place in places_of(context.model, context.graph):
        own, device = found.setdefault(place.space, []), context.model.get_parameter(place.slot.param).device
        with safe_open(folder / header.files[place.space], "pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(f"{place.space}/{len(own)}/{name}") for name in GATHERED}
        count = header.counts[place.space][len(own)]
        own.append(signal_at(context.model, context.graph, place, count, tensors.__getitem__))
    return {space: tuple(own) for space, own in found.items()}


def rebound(signals: Signals, model: nn.Module, graph: ModelGraph) -> Signals:
    """The same signals at the matrices of another copy of the model, on its device."""
    found: dict[str, list[Signal]] = {}
    for place in places_of(model, graph):
        weight, own = reading_at(model, graph, place).matrix, found.setdefault(place.space, [])
        signal = signals[place.space][len(own)]
        moved = {name: getattr(signal, name).to(weight.device) for name in GATHERED}
        own.append(replace(signal, weight=weight, **moved))
    return {space: tuple(own) for space, own in found.items()}


def _shards(signals: Signals) -> Iterator[list[str]]:
    """Names of spaces whose signals share a file."""
    spaces, size = list[str](), 0
    for space, own in signals.items():
        spaces.append(space)
        size += sum(signal.covariance.nbytes for signal in own)
        if size >= FILE_BYTES:
            yield spaces
            spaces, size = [], 0
    if spaces:
        yield spaces


def _tensors_of(signals: Signals, spaces: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    for space in spaces:
        for i, signal in enumerate(signals[space]):
            yield from ((f"{space}/{i}/{name}", tensor) for name, tensor in gathered_in(signal).items())


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({n: owned(t) for n, t in tensors.items()}, file)
    file.chmod(0o666 & ~umask())  # safetensors leaves files to their owner alone


def digest_of(batches: Iterable[Inputs]) -> str:
    """Sixteen hex digits over all values of some inputs."""
    sha = hashlib.sha256()
    for batch in batches:
        for name, value in tensors_in_batch(batch):
            sha.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
