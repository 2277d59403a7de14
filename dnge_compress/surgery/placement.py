"""Models that accelerate has spread over devices (`device_map`): the smaller one is spread as the whole one was.

Hooks in front of every module bring its inputs to its device. They know the object that they were made for, so another
object gets hooks of its own; no weight is moved by that.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dnge_compress.graph.cuts import AppliedCuts

HOOK = "AlignDevicesHook"  # the kind that a device map makes


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate's hooks, and no others, bring a model's inputs to where its modules lie."""
    kinds = {type(vars(m)["_hf_hook"]).__name__ for m in model.modules() if "_hf_hook" in vars(m)}
    return kinds == {HOOK} and "_hf_hook" in vars(model) and hasattr(model, "hf_device_map")


def spread_like(model: Any, like: Any, applied: AppliedCuts | None = None) -> None:
    """Spread `model` in place as `like` is, a model of the same modules; `applied` are cuts by which it has fewer.
    Where `like` lies on one device, only the map of its modules is brought up to date."""
    places: dict[str, Any] | None = getattr(like, "hf_device_map", None)
    if places is None:
        return
    paths = {path: path if applied is None else applied.path_after(path) for path in places}
    left = {path: places[old] for old, path in paths.items() if path is not None}
    if not is_spread(like):
        model.hf_device_map = left
        return
    from accelerate import dispatch_model  # here, since only who has it can have such a model

    main, skipped = like._hf_hook.execution_device, like._hf_hook.skip_keys
    _unhook(model)
    dispatch_model(model, left, main_device=main, skip_keys=skipped, force_hooks=True)


def become(model: nn.Module, other: nn.Module) -> None:
    """Let the object `model` be the network that `other` is, hooks included."""
    vars(model).clear()
    vars(model).update(vars(other))
    if is_spread(other):
        spread_like(model, other)


def _unhook(model: nn.Module) -> None:
    """Take away the hooks, also those that belong to the object of which this one is a copy."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        own = vars(module).get("forward")
        if getattr(own, "__func__", None) is type(module).forward:  # the class's, bound to whatever object
            del vars(module)["forward"]
