"""Trackers of experiments, which transformers drives: refused before any work where they can't be used, and ended with
the training that they follow."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers.integrations import integration_utils

from dnge_compress.core.errors import LaunchError, RecipeError, UnknownNameError, first_line

REPORTERS = "INTEGRATION_TO_CALLBACK"
WANDB = "wandb"
UNSENT = ("offline", "disabled", "dryrun")  # modes of Weights & Biases that need no account
WAY_OUT = "log in (wandb login), or set WANDB_MODE=offline"


def refuse_tracker(name: str) -> None:
    """Raise UnknownNameError for a tracker that transformers doesn't know, RecipeError for one that isn't installed, or
    that nobody has logged in to."""
    installed = integration_utils.get_available_reporting_integrations()
    known = ["none", "all", *getattr(integration_utils, REPORTERS)]
    if name not in known:
        raise UnknownNameError("reporter", name, known)
    if name not in ("none", "all", *installed):
        raise RecipeError(f"train.report_to is '{name}', which isn't installed; pip install it, or write none")
    if (name == WANDB or (name == "all" and WANDB in installed)) and not _has_account():
        raise RecipeError(f"train.report_to is '{name}', and {WANDB} isn't logged in; {WAY_OUT}, or write none")


@contextmanager
def followed(reporters: Sequence[str]) -> Iterator[None]:
    """A training that reports: what trackers refuse is a LaunchError, and the run of Weights & Biases ends with it; the
    next training would go into it otherwise. A run of the caller's own stays open."""
    was_running, exit_code = _is_wandb_running(), 1
    try:
        yield
        exit_code = 0
    except Exception as e:
        name = type(e).__module__.partition(".")[0]
        if name not in reporters and not ("all" in reporters and name in getattr(integration_utils, REPORTERS)):
            raise
        raise LaunchError(
            f"train.report_to: {name} refuses the run ({first_line(e)}); mend that, and run the job again"
        ) from e
    finally:
        if _is_wandb_running() and not was_running:
            sys.modules[WANDB].finish(exit_code=exit_code)


def _has_account() -> bool:
    """Whether Weights & Biases finds a key, or needs none; True as well for versions that can only ask for one."""
    import wandb  # only where a recipe names it

    if wandb.run is not None or wandb.setup().settings.mode in UNSENT:  # by WANDB_MODE, or by `wandb offline`
        return True
    if "prompt" not in inspect.signature(wandb.login).parameters:
        return True
    return bool(wandb.login(prompt=False, verify=False))


def _is_wandb_running() -> bool:
    return getattr(sys.modules.get(WANDB), "run", None) is not None
