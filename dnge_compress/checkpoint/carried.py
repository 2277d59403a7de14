"""The plan of a model whose widths its config can't say, carried in that config: so `save_pretrained`, Trainer's
checkpoints and `push_to_hub` take it along, and `load` replays it from there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from dnge_compress.checkpoint.compression import Compression
from dnge_compress.checkpoint.outlines import inputs_of, outline
from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.strict_json import read_json
from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.vocabulary_plan import VocabularyPlan

KEY = "dnge_compress"


def attach(model: nn.Module, compression: Compression) -> None:
    """Leave a compression on a model as `.dnge`, and in its config where only the plan tells the widths."""
    found: Any = model
    found.dnge = compression
    if isinstance(model, PreTrainedModel) and compression.plan and compression.plan.uneven and compression.base_config:
        content = {
            "plan": compression.plan.to_json(),  # as text: transformers sorts keys
            "vocabulary": compression.vocabulary.to_json() if compression.vocabulary else None,
            "base_config": own_config(compression.base_config),
            "inputs": json.loads(outline(compression.inputs)) if compression.inputs is not None else None,
        }
        found._weight_conversions = []  # transformers then keeps the model's own names, which the replay needs
        try:
            text = json.dumps(content)
        except TypeError as e:
            raise CheckpointError(
                f"the config of this {type(model).__name__} can't be saved ({e}); make that a plain value"
            ) from None
        setattr(model.config, KEY, json.loads(text))  # as it will be read: transformers copies, compares and writes it


def own_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values without a plan that it carries."""
    return {key: value for key, value in config.items() if key != KEY}


def carried(folder: Path) -> Compression | None:
    """What the config in a folder carries, if it does. Raises PlanError or CheckpointError for what is broken."""
    raw = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    found = raw.get(KEY) if isinstance(raw, dict) else None
    if found is None:
        return None
    where = f"'{folder / 'config.json'}': {KEY}"
    kinds = {"plan": str, "base_config": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{where} holds no plan of ours; save the model again with dnge_compress.save")
    plan = PrunePlan.from_json(found["plan"], f"{where}.plan")
    text, inputs = found.get("vocabulary"), found.get("inputs")
    return Compression(
        plan=plan,
        base_config=found["base_config"],
        vocabulary=VocabularyPlan.from_json(text, f"{where}.vocabulary") if isinstance(text, str) else None,
        inputs=inputs_of(inputs, f"the inputs in '{folder / 'config.json'}'") if isinstance(inputs, dict) else None,
    )


@contextmanager
def without_plan(model: PreTrainedModel) -> Iterator[None]:
    """While entered, the config carries no plan: beside the plan's own file it would stand there twice."""
    values = vars(model.config)
    found = values.pop(KEY, None)
    try:
        yield
    finally:
        if found is not None:
            values[KEY] = found
