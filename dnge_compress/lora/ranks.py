"""From weights to whole ranks: an apportionment that never goes above the budget.

Ranks are handed out one step at a time to the site whose weight per rank it would then have is largest (a divisor
method, as for seats in a parliament). That maximises Σ price · weight · log(rank), so the gain is concave: where much
is, another rank adds less. It is monotone: a larger budget takes no rank away from anybody.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from dnge_compress.core.errors import BudgetError
from dnge_compress.lora.adapters import Site
from dnge_compress.recipes.lora_schema import Lora

ROUNDING = 0.5  # Webster's divisor: a site whose ideal rank is above half a step gets one


def allocate(sites: Sequence[Site], weights: Mapping[str, float], budget: int, lora: Lora) -> dict[str, int]:
    """Path → rank: multiples of `rank_multiple` from `min_rank` to `max_rank` and the matrix's own, or 0.

    Their parameters are at most `budget`, and so near to it that no further step of any site with a weight fits.
    Raises BudgetError with the smallest budget that works.
    """
    ladders = {s.path: ladder(s, lora) for s in sites if weights[s.path] > 0}
    open_sites = [s for s in sites if ladders.get(s.path)]
    if not open_sites:
        raise BudgetError(
            f"no matrix can have a rank of min_rank {lora.min_rank} in multiples of {lora.rank_multiple}; lower them"
        )
    least = min(s.price * ladders[s.path][0] for s in open_sites)
    if budget < least:
        raise BudgetError(f"a budget of {budget:,} parameters is too small; the smallest possible here is {least:,}")
    ranks = {s.path: 0 for s in sites}
    queue = [(-_claim(weights[s.path], 0, ladders[s.path][0]), i, 0) for i, s in enumerate(open_sites)]
    heapq.heapify(queue)
    left = budget
    while queue:
        _, i, step = heapq.heappop(queue)
        site = open_sites[i]
        steps, rank = ladders[site.path], ranks[site.path]
        cost = site.price * (steps[step] - rank)
        if cost > left:
            continue  # nobody's next step gets cheaper, so this site is done
        left -= cost
        ranks[site.path] = steps[step]
        if step + 1 < len(steps):
            claim = _claim(weights[site.path], steps[step], steps[step + 1])
            heapq.heappush(queue, (-claim, i, step + 1))
    return ranks


def ladder(site: Site, lora: Lora) -> list[int]:
    """The ranks above 0 that a site may have, ascending; none if it's too small for any."""
    step = lora.rank_multiple
    first = -(-lora.min_rank // step) * step
    return list(range(first, min(lora.max_rank, site.size) + 1, step))


def _claim(weight: float, rank: int, following: int) -> float:
    return weight / (rank + ROUNDING * (following - rank))
