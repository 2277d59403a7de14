"""Rows to train on and rows held out."""

from __future__ import annotations

import random

import numpy as np

from dnge_compress.core.errors import DataError
from dnge_compress.core.wording import several
from dnge_compress.data.rows import Rows


def split_rows(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out, a share `fraction` of them drawn by `seed`; both keep their order.

    Rows of one conversation (`rows.groups`) stand on one side. Groups are drawn while they fit into the share; where
    none does, the smallest is held out. What was read, cut or skipped of both is counted with the rows to train on.
    Raises DataError if one side would be empty.
    """
    total = len(rows.examples)
    count = max(1, round(fraction * total))
    if count >= total:
        raise DataError(
            f"a share of {fraction:g} can't be held out of {total} row{'s'[: total > 1]}; give more rows, a smaller "
            "max_length, or eval_datasets"
        )
    members = _members(rows.groups if len(rows.groups) else np.arange(total))
    if len(members) == 1:
        raise DataError(
            f"all {total} rows belong to one conversation (the same id, or the same first turn), so none can be held "
            'out; give rows of others, or eval_datasets, or columns: {id: ""} where the id says something else'
        )
    held_out = set(_drawn(members, count, random.Random(seed)))
    kept = [i for i in range(total) if i not in held_out]
    notes = rows.notes
    if len(members) < total:
        together = sum(len(group) for group in members if len(group) > 1)
        notes = (
            *notes,
            f"{together:,} of {several(total, 'row')} share their conversation (id, or first turn) with others; each "
            f"conversation is trained on or held out as a whole ({several(len(held_out), 'row')} held out)",
        )
    train, test = rows.part(kept), rows.part(sorted(held_out))
    return Rows(train.examples, {**rows.counts, **train.counts}, notes, train.groups), test


def _members(groups: np.ndarray) -> list[list[int]]:
    """The rows of every group, in the order of their first one."""
    found: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        found.setdefault(group, []).append(row)
    return list(found.values())


def _drawn(members: list[list[int]], count: int, chance: random.Random) -> list[int]:
    if len(members) == sum(map(len, members)):  # each row its own
        return [members[i][0] for i in chance.sample(range(len(members)), count)]
    drawn: list[int] = []
    for group in chance.sample(members, len(members)):
        if len(drawn) + len(group) <= count:
            drawn += group
    return drawn or min(members, key=len)
