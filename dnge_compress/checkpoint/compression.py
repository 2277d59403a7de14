"""What `compress` leaves on a model, and the names of its files in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dnge_compress.plans.prune_plan import PrunePlan
from dnge_compress.plans.vocabulary_plan import VocabularyPlan
from dnge_compress.report.report import Report
from dnge_compress.signals.inference import Inputs

PLAN, REPORT = "dnge_plan.json", "dnge_report.json"
BASE_CONFIG, INPUTS = "dnge_base_config.json", "dnge_inputs.json"
VOCABULARY = "dnge_vocabulary.json"


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What `compress` and `trim_vocabulary` leave on a model as `model.dnge`.

    `plan` says what was pruned, `vocabulary` which tokens were left after that; either may be None. `base_config` is
    the config before the pruning (`config.to_dict()`; None for a plain module), `inputs` a small batch that `save`
    compares outputs on. `tokenizer` is the one that lost its tokens just now, `tokenizer_files` what it is saved as.
    """

    plan: PrunePlan | None = None
    report: Report | None = None
    base_config: Mapping[str, Any] | None = None
    inputs: Inputs | None = None
    vocabulary: VocabularyPlan | None = None
    tokenizer: Any = None
    tokenizer_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_uneven(self) -> bool:
        """Whether widths are such as no config can say, so that plans are replayed to load the model."""
        return self.plan is not None and self.plan.uneven
