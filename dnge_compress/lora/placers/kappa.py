"""peft's own weights-only selector: adapters on the best-conditioned matrices (KappaTune, arXiv 2506.16289)."""

from __future__ import annotations

from collections.abc import Sequence

from peft.helpers import KappaTuneSelector

from dnge_compress.lora.adapters import Site
from dnge_compress.lora.placers import PlacingContext, Weights

NEEDS_DATA = False
TOP = 0.2  # share of the matrices: the default of peft's find_kappa_target_modules


def weigh(sites: Sequence[Site], context: PlacingContext) -> Weights:
    """One for the share TOP of lowest condition numbers, of modules and of experts each; zero for the others.

    The selector looks at `nn.Linear` and at experts' parameters only; it says nothing about GPT-2's Conv1D.
    """
    selector = KappaTuneSelector(context.model, show_progress=False)
    ordered = (selector.get_best_targets(), selector.get_best_target_parameters())
    paths = {site.path for site in sites}
    found: dict[str, float] = {}
    for names in ordered:
        ours = [name for name in names if name in paths]
        chosen = max(1, int(TOP * len(ours)))
        found |= {name: float(i < chosen) for i, name in enumerate(ours)}
    return found
