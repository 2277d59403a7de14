"""Numbers of heads: alone, with the key/value heads they go with, and with widths that have a block for each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from dnge_compress.graph.derivation.config_keys import Key, value_at
from dnge_compress.graph.derivation.readings import Base, Counted, fewer_together, single

HEADS = re.compile("^(?!.*(dim|size|d_head|ratio)).*head")  # counts of heads, not their sizes
AT_ONCE = (1, 2)  # heads that go together: differential attention subtracts one of a pair from the other


def is_head_count(key: Key) -> bool:
    """Whether the name of a key says that it counts heads."""
    return HEADS.search(str(key[-1] if isinstance(key[-1], str) else key[-2])) is not None


def is_guess(counted: Counted) -> bool:
    """Whether heads were read together with a width, which only a proof makes more than a coincidence."""
    return counted.are_heads and not all(is_head_count(key) for key, _ in counted.keys)


def head_counts(base: Base, key: Key, numbers: list[Key]) -> Iterator[Counted]:
    """A head count with the key/value heads it goes with; query heads, one from each group; alone; and with a width of
    which every head has a block."""
    value = value_at(base.config, key)
    if not isinstance(value, int):
        return
    for second in numbers:
        small = value_at(base.config, second)
        if not is_head_count(second) or second[:-1] != key[:-1] or second == key or not isinstance(small, int):
            continue
        if value % small or small == 1 or _stand_apart(base, key, second):
            continue
        share = value // small
        for at_once in (n for n in AT_ONCE if small % n == 0):
            keys = ((key, Fraction(share * at_once)), (second, Fraction(at_once)))
            if found := fewer_together(base, keys, small // at_once):
                yield found
        for at_once in (n for n in AT_ONCE if share > 1 and small % n == 0):
            groups = small // at_once
            if found := fewer_together(base, ((key, Fraction(at_once)),), value // at_once, groups):
                yield replace(found, groups=groups)
    if alone := single(base, key):
        yield alone
    elif _grows_elsewhere(base, key):
        for width in numbers:
            size = value_at(base.config, width)
            if is_head_count(width) or width[:-1] != key[:-1] or not isinstance(size, int) or size == value:
                continue
            if found := fewer_together(base, ((key, Fraction(1)), (width, Fraction(size, value))), value):
                yield found


def _stand_apart(base: Base, key: Key, other: Key) -> bool:
    """Whether two numbers count heads of different modules, as those of an encoder and a decoder."""
    places = []
    for alone in (key, other):
        halved = base.moved({alone: value_at(base.config, alone) // 2})
        places.append({name.rsplit(".", 2)[0] for name, _ in halved[1]} if halved else set())
    return all(places) and not places[0] & places[1]


def _grows_elsewhere(base: Base, key: Key) -> bool:
    """Whether fewer of these alone build nothing, or make other axes longer."""
    value = value_at(base.config, key)
    fewer = [base.moved({key: n}) for n in dict.fromkeys((value - 1, value // 2)) if n > 0]
    return all(found is None or any(new > old for old, new in found[1].values()) for found in fewer)
