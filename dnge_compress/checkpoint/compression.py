"""What `compress` leaves on a model, and the names of its files in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.report.report import Report
from dnge_compress.signals.inference import Inputs

PLAN, REPORT = "dnge_plan.json", "dnge_report.json"
BASE_CONFIG, INPUTS = "dnge_base_config.json", "dnge_inputs.json"


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What `compress` leaves on a model as `model.dnge`.

    `base_config` is the config before surgery (`config.to_dict()`; None for a plain module), `inputs` a small batch
    that `save` compares outputs on.
    """

    plan: PrunePlan
    report: Report | None = None
    base_config: Mapping[str, Any] | None = None
    inputs: Inputs | None = None
