"""The public verbs about vocabularies: which tokens are never used, and a model with its tokenizer without them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dnge_compress.checkpoint import Compression, check_weights, opened
from dnge_compress.checkpoint.carried import attach
from dnge_compress.checkpoint.loading import compression_in
from dnge_compress.core.errors import DataError, PlanError, UnsupportedModelError, refuse_below
from dnge_compress.core.progress import Progress, reporter
from dnge_compress.core.verbs import verb
from dnge_compress.graph.tracing.running import copied
from dnge_compress.graph.vocabulary import params_per_token, rows_of, vocabulary_graph
from dnge_compress.plans.vocabulary_plan import VocabularyPlan, tokens_fingerprint
from dnge_compress.recipes.schema import Calibration
from dnge_compress.signals.calibration import synthesize
from dnge_compress.signals.inference import Inputs, first_examples
from dnge_compress.surgery.placement import become, spread_like
from dnge_compress.surgery.token_ids import named_ids, renumbered_inputs
from dnge_compress.surgery.vocabulary import check_tokens, cut_vocabulary, new_ids
from dnge_compress.vocabulary.coverage import template_ids, used_ids, written_in
from dnge_compress.vocabulary.planning import kept_tokens, refuse_incomplete
from dnge_compress.vocabulary.tokenizer import pieces_of, tokenizer_beside, trimmed

__all__ = ["apply_vocabulary", "plan_vocabulary", "trim_vocabulary"]

Model: TypeAlias = nn.Module | str | Path
TEXTS, SCRIPTS, TEMPLATE = "in the texts", "of the scripts", "in the chat template"
UNTRIED = (
    "the chat template renders no conversation that was tried, so the tokens it writes may go; give rendered chats"
)
ROWS, LENGTH = 2, 16  # of the inputs that the cut is proved on


@verb
def trim_vocabulary(
    model: Model,
    texts: Iterable[str] | None = None,
    *,
    scripts: Sequence[str] = (),
    round_to: int = 1,
    tokenizer: Any = None,
    progress: Progress | bool = False,
) -> nn.Module:
    """A copy of `model` without the tokens that `texts` and `scripts` never use: `plan_vocabulary` and `apply`.

    On texts made of what stays it answers exactly as before, and those given are cut up as before; any other text can
    still be written, with more tokens. `save` writes model and tokenizer; until then the tokenizer is
    `.dnge.tokenizer`.

        save(trim_vocabulary("bert-base-multilingual-cased", texts), "small")
    """
    found = _opened(model)
    plan = plan_vocabulary(found, texts, scripts=scripts, round_to=round_to, tokenizer=tokenizer, progress=progress)
    return apply_vocabulary(plan, found, tokenizer=tokenizer)


@verb
def plan_vocabulary(
    model: Model,
    texts: Iterable[str] | None = None,
    *,
    scripts: Sequence[str] = (),
    round_to: int = 1,
    tokenizer: Any = None,
    progress: Progress | bool = False,
) -> VocabularyPlan:
    """Which tokens stay: those that `texts` are cut into, those written in `scripts` ("Latin", "Cyrillic"), and those
    without which some text couldn't be written. The model is only read.

    Special and added tokens, single characters and bytes always stay, and the parts that BPE merges a token from. Their
    number is rounded up to a multiple of `round_to` with further tokens. `tokenizer` is the one beside the model, if
    none is given. Raises DataError without texts and scripts, UnsupportedModelError for a tokenizer that can't be cut.

        Path("plan.json").write_text(plan_vocabulary(model, scripts=["Latin"]).to_json())
    """
    if texts is None and not scripts:
        raise DataError("nothing says which tokens are used; pass texts (--data) or scripts (--scripts)")
    refuse_below(1, round_to=round_to)
    found = _opened(model)
    graph, rows = vocabulary_graph(found), rows_of(found)
    tokenizer = tokenizer or tokenizer_beside(found)
    pieces = pieces_of(tokenizer, rows)
    report = reporter(progress)
    report("vocabulary", 0, 1)
    used = dict.fromkeys(written_in(tokenizer, pieces.own.values(), scripts), SCRIPTS) if scripts else {}
    if texts is not None:
        used |= dict.fromkeys(used_ids(tokenizer, texts), TEXTS)
    template = template_ids(tokenizer)
    used |= dict.fromkeys((template or set()) - used.keys(), TEMPLATE)
    kept = kept_tokens(pieces, used, named=named_ids(found), rows=rows, round_to=round_to)
    report("vocabulary", 1, 1)
    named = {i: piece for piece, i in pieces.ids.items()}
    reasons = list(kept.values())
    return VocabularyPlan(
        keep=tuple(sorted(kept)),
        tokens=tuple(named.get(i, "") for i in sorted(kept)),
        rows=rows,
        base=tokens_fingerprint(pieces.ids),
        params_before=sum(p.numel() for p in found.parameters()),
        params_per_token=params_per_token(found, graph),
        reasons={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        notes=(UNTRIED,) if template is None else (),
    )


def apply_vocabulary(plan: VocabularyPlan, model: Model, *, tokenizer: Any = None, inplace: bool = False) -> nn.Module:
    """Carry out a plan on a copy of `model` and its tokenizer, and prove that what stays answers as before.

    Raises PlanError if the plan was made for another tokenizer or leaves out what has to stay, ExactnessError for a
    model that uses ids in a way that isn't known here.
    """
    dense: Any = _opened(model)
    check_weights(dense)
    graph, rows = vocabulary_graph(dense), rows_of(dense)
    tokenizer = tokenizer or tokenizer_beside(dense)
    pieces = pieces_of(tokenizer, rows)
    if plan.rows != rows or plan.base != tokens_fingerprint(pieces.ids):
        raise PlanError(
            f"the plan was made for another tokenizer or vocabulary (of {plan.rows:,} tokens, here {rows:,}); "
            "make one for this model"
        )
    refuse_incomplete(pieces, plan.keep, named_ids(dense))
    small: Any = copied(dense)
    small.__dict__.pop("dnge", None)
    cut_vocabulary(small, graph, plan.keep)
    inputs = _inputs(dense, plan.keep)
    check_tokens(small, dense, plan.keep, inputs)
    spread_like(small, dense)
    cut_tokenizer = trimmed(tokenizer, pieces, plan.keep, small.config)
    before = getattr(dense, "dnge", None) or Compression()
    attached = Compression(
        plan=before.plan,
        report=before.report,
        base_config=before.base_config,
        inputs=renumbered_inputs(inputs, new_ids(plan.keep)),
        vocabulary=plan.after(before.vocabulary),
        tokenizer=cut_tokenizer.tokenizer,
        tokenizer_files=cut_tokenizer.files,
    )
    attach(small, attached)
    if inplace:
        become(dense, small)
        small = dense
    return small


def _opened(model: Model) -> Any:
    """The model, with what its folder tells of earlier cuts."""
    found: Any = opened(model)
    rows_of(found)
    if not isinstance(getattr(found, "dnge", None), Compression):
        earlier = compression_in(Path(found.name_or_path)) if found.name_or_path else None
        if earlier is not None:
            attach(found, earlier)
    return found


def _inputs(model: Any, keep: tuple[int, ...]) -> Inputs:
    """A few inputs in which tokens that go are replaced by others, so that both models can answer them."""
    calibration = Calibration(tokens=64, length=LENGTH)
    inputs: Any = first_examples(synthesize(model, calibration, None), ROWS)[0]
    if not any(name.endswith("input_ids") for name in inputs):
        raise UnsupportedModelError(f"a {type(model).__name__} can't be tried on token ids, so its tokens stay")
    stay = torch.tensor(keep)

    def kept(ids: Tensor) -> Tensor:
        others = stay[ids.cpu() % len(stay)].to(ids.device)
        return torch.where(torch.isin(ids, stay.to(ids.device)), ids, others)

    return {name: kept(values) if name.endswith("input_ids") else values for name, values in inputs.items()}
