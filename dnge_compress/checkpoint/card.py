"""The model card of a compressed checkpoint: what went, what it cost, how to load it, how to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from jinja2 import Environment
from torch import nn

from dnge_compress.checkpoint.aux_files import Base
from dnge_compress.checkpoint.compression import PLAN, VOCABULARY, Compression
from dnge_compress.checkpoint.file_names import MODULES
from dnge_compress.plans.prune_plan import PrunePlan

TEMPLATE = Path(__file__).with_name("card.md.j2")


def model_card(
    model: nn.Module, compression: Compression, base: Base, copied: Sequence[str], left_out: Sequence[str]
) -> str:
    """Markdown with the hub's front matter."""
    template = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )  # autoescape is for HTML; the report escapes what users wrote
    plan, report, vocabulary = compression.plan, compression.report, compression.vocabulary
    removed = [] if plan is None else _removed(plan) if report else [*_removed(plan), *plan.notes]
    if vocabulary is not None:
        removed.append(f"`tokens`: {len(vocabulary.keep):,} of {vocabulary.rows:,} kept, the tokenizer's as well")
    return template.render(
        front_matter=_front_matter(model, compression, base, copied),
        name=base.hub_id or (base.folder.name if base.folder else type(model).__name__),
        class_name=type(model).__name__,
        how="pruned by dnge_compress without retraining"
        if plan
        else "without the tokens that it never reads or writes",
        sizes=_sizes(model, compression),
        removed=removed,
        report=report.to_markdown().rstrip() if report else "",
        has_config=hasattr(model, "config"),
        is_sentence_transformer=MODULES in copied,
        is_uneven=compression.is_uneven,
        plan_files=[name for name, made in ((PLAN, plan), (VOCABULARY, vocabulary)) if made is not None],
        base=base,
        left_out=left_out,
    )


def _front_matter(model: nn.Module, compression: Compression, base: Base, copied: Sequence[str]) -> str:
    pruned = ["pruned", "structured-pruning"] if compression.plan else []
    tags = ["dnge-compress", *pruned, *(["sentence-transformers"] if MODULES in copied else [])]
    library = "transformers" if hasattr(model, "config") and not compression.is_uneven else "dnge-compress"
    fields = {**base.metadata, "library_name": library, "tags": tags}
    if base.hub_id:
        fields["base_model"] = base.hub_id
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _sizes(model: nn.Module, compression: Compression) -> str:
    first = compression.plan or compression.vocabulary
    if first is None or not first.params_before:
        return ""
    after = sum(p.numel() for p in model.parameters()) if compression.vocabulary else first.params_after
    share = 100 * (1 - after / first.params_before)
    return f"Parameters: {first.params_before:,} → {after:,} (−{share:.1f} %)."


def _removed(plan: PrunePlan) -> list[str]:
    """One line per kind of space; which units stayed is in the plan."""
    groups: dict[str, list[int]] = {}
    for cut in plan.cuts:
        groups.setdefault(cut.space.partition(".")[0], []).append(len(cut.keep))
    lines = []
    for kind, kept in groups.items():
        number = str(kept[0]) if min(kept) == max(kept) else f"{min(kept)} to {max(kept)}"
        places = "" if len(kept) == 1 else f", in each of {len(kept)} spaces"
        lines.append(f"`{kind}`: {number} kept{places}")
    return lines or ["nothing"]
