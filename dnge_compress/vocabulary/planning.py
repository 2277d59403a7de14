"""From what is used to what stays: tokens that others need, and a number of them that other programs like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dnge_compress.core.errors import BudgetError, PlanError
from dnge_compress.vocabulary.pieces import Pieces

NAMED, PARTS, ROUNDING = "named by the config", "merged into others", "to round up"


def kept_tokens(
    pieces: Pieces, used: Mapping[int, str], *, named: Iterable[int] = (), rows: int, round_to: int = 1
) -> dict[int, str]:
    """The ids that stay, each with its reason; `used` ones have theirs.

    Rounding up keeps more of the tokenizer's tokens, the lowest ids first, since no row is invented. Raises BudgetError
    where there aren't enough.
    """
    kept = dict(pieces.must_stay)
    for i, reason in (*((i, NAMED) for i in named), *used.items()):
        kept.setdefault(i, reason)
    texts = {i: piece for piece, i in pieces.own.items()}
    for i in list(kept):
        if i in texts:
            for part in pieces.parts(texts[i]):
                kept.setdefault(part, PARTS)
    wanted = -(-len(kept) // round_to) * round_to
    if wanted > rows:
        raise BudgetError(
            f"{len(kept):,} of {rows:,} tokens have to stay, and no multiple of {round_to:,} lies between; "
            "choose a smaller round_to"
        )
    return kept | dict.fromkeys(_more(pieces, kept, wanted - len(kept), rows), ROUNDING)


def refuse_incomplete(pieces: Pieces, keep: Sequence[int], named: Iterable[int]) -> None:
    """Raise PlanError for an (edited) plan without tokens that have to stay."""
    kept, texts = set(keep), {i: piece for piece, i in pieces.ids.items()}
    reasons = dict.fromkeys(named, NAMED) | pieces.must_stay
    lost = min(reasons.keys() - kept, default=None)
    if lost is not None:
        raise PlanError(f"the plan leaves out token {lost} ('{texts.get(lost, '')}'), which stays ({reasons[lost]})")
    for piece, i in pieces.own.items():
        missing = min(pieces.parts(piece) - kept, default=None) if i in kept else None
        if missing is not None:
            raise PlanError(
                f"the plan leaves out token {missing} ('{texts[missing]}'), which '{piece}' is merged from; keep both, "
                "or neither"
            )


def _more(pieces: Pieces, kept: Iterable[int], count: int, rows: int) -> list[int]:
    """So many further ids: tokens whose parts all stay, in order, then rows that no token has."""
    chosen: list[int] = []
    stays = set(kept)
    texts = {i: piece for piece, i in pieces.own.items()}
    waiting = sorted(texts.keys() - stays)
    while len(chosen) < count and waiting:
        later = []
        for i in waiting:
            if len(chosen) < count and pieces.parts(texts[i]) <= {*stays, i}:
                chosen.append(i)
                stays.add(i)
            else:
                later.append(i)
        if len(later) == len(waiting):
            break
        waiting = later
    spare = (i for i in range(rows) if i not in stays and i not in texts)
    while len(chosen) < count:
        chosen.append(next(spare))
    return chosen
