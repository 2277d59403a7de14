"""The model card of a compressed checkpoint: what went, what it cost, how to load it, how to do it again."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from torch import nn

from dnge_compress.checkpoint.aux_files import MODULES, Base
from dnge_compress.checkpoint.compression import PLAN, Compression
from dnge_compress.plans.prune_plan import PrunePlan


def model_card(
    model: nn.Module, compression: Compression, base: Base, copied: Sequence[str], left_out: Sequence[str]
) -> str:
    """Markdown with the hub's front matter."""
    plan = compression.plan
    name = base.hub_id or (base.folder.name if base.folder else type(model).__name__)
    parts = [
        _front_matter(model, plan, base, copied),
        f"# {name}, compressed\n",
        f"A smaller {type(model).__name__}, pruned by dnge_compress without retraining. {_sizes(plan)}\n",
        "## What was removed\n",
        "\n".join(_removed(plan)) + "\n",
    ]
    if compression.report is not None:
        parts += ["## Report\n", compression.report.to_markdown() + "\n"]
    parts += ["## Load\n", _loading(model, plan, copied)]
    parts += ["## Do it again\n", _replaying(model, name)]
    if left_out:
        parts.append("Not copied from the base, because pickled: " + ", ".join(f"`{f}`" for f in left_out) + ".\n")
    if base.hub_id and base.folder is None:
        parts.append(f"The files beside the weights of `{base.hub_id}` (tokenizer, processor) weren't at hand.\n")
    return "\n".join(parts)


def _front_matter(model: nn.Module, plan: PrunePlan, base: Base, copied: Sequence[str]) -> str:
    has_config = hasattr(model, "config")
    fields = {
        **base.metadata,
        "library_name": "transformers" if has_config and not plan.uneven else "dnge-compress",
        "tags": ["dnge-compress", "pruned", "structured-pruning"]
        + (["sentence-transformers"] if MODULES in copied else []),
    }
    if base.hub_id:
        fields["base_model"] = base.hub_id
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _sizes(plan: PrunePlan) -> str:
    if not plan.params_before:
        return ""
    share = 100 * (1 - plan.params_after / plan.params_before)
    return f"Parameters: {plan.params_before:,} → {plan.params_after:,} (−{share:.1f} %)."


def _removed(plan: PrunePlan) -> list[str]:
    """One line per kind of space; which units stayed is in the plan."""
    groups: dict[str, list[int]] = {}
    for cut in plan.cuts:
        groups.setdefault(cut.space.partition(".")[0], []).append(len(cut.keep))
    lines = []
    for kind, kept in groups.items():
        number = str(kept[0]) if min(kept) == max(kept) else f"{min(kept)} to {max(kept)}"
        places = "" if len(kept) == 1 else f", in each of {len(kept)} spaces"
        lines.append(f"- `{kind}`: {number} kept{places}")
    return (lines or ["- nothing"]) + [f"- {note}" for note in plan.notes]


def _loading(model: nn.Module, plan: PrunePlan, copied: Sequence[str]) -> str:
    cls = type(model).__name__
    if not hasattr(model, "config"):
        code = f'from dnge_compress import load\n\nmodel = load("PATH", model={cls}(...))  # a fresh base'
    elif plan.uneven:
        code = 'from dnge_compress import load  # uneven widths: the plan is replayed\n\nmodel = load("PATH")'
    else:
        code = f'from transformers import {cls}\n\nmodel = {cls}.from_pretrained("PATH")'
    if MODULES in copied and not plan.uneven:
        code += '\n\n# or\nfrom sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("PATH")'
    return f"```python\n{code}\n```\n"


def _replaying(model: nn.Module, name: str) -> str:
    if hasattr(model, "config"):
        return f"`{PLAN}` says what to keep of which base:\n\n```\ndnge apply {PLAN} {name} -o OUT\n```\n"
    return f"`{PLAN}` says what to keep of which base; `dnge_compress.apply(plan, model)` carries it out.\n"
