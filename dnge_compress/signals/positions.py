"""How many tokens a model has positions for, asked of the model itself.

Tables of positions differ by family in where they begin: RoBERTa counts from behind the padding's row, OPT and BART
leave two rows out. Two short texts tell: a table whose highest row that is looked up grows with the text is one of
positions, and where it begins is what lies before.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dnge_compress.signals.inference import device_of, inference_mode_of

SHORT, LONGER = 5, 8  # tokens of the two texts
# Ways to look rows up, and which argument says which rows.
LOOKUPS = {
    torch.ops.aten.embedding.default: 1,
    torch.ops.aten.index_select.default: 2,
    torch.ops.aten.index.Tensor: 1,  # table[positions]
}


def positions_of(model: Any) -> int | None:
    """The longest text in tokens, or None where there is no limit (XLNet's config says −1)."""
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [declared] if isinstance(declared, int) and declared > 0 else []
    tables, later = (_looked_up(model, length) for length in (SHORT, LONGER))
    for table, (rows, highest) in tables.items():
        # States that grow with the text may lie in the same place, but have other numbers of rows.
        if table in later and later[table] == (rows, highest + LONGER - SHORT):
            limits.append(rows - (highest + 1 - SHORT))
    return min(limits, default=None)


class _Watching(TorchDispatchMode):
    """Notes for every table, by its place in memory, its rows and the highest that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKUPS:
            self._note(args[0], args[LOOKUPS[func]])
        return func(*args, **(kwargs or {}))

    def _note(self, table: Tensor, ids: Any) -> None:
        ids = ids if isinstance(ids, Tensor) else ids[0]
        is_whole = isinstance(ids, Tensor) and not ids.is_floating_point() and ids.dtype != torch.bool
        if is_whole and table.dim() == 2 and ids.dim() and len(ids.flatten()) == ids.shape[-1] > 1:
            self.found[table.data_ptr()] = (table.shape[0], int(ids.max()))


def _looked_up(model: nn.Module, length: int) -> dict[int, tuple[int, int]]:
    config: Any = model.config
    token = 4 if getattr(config.get_text_config(), "pad_token_id", None) == 3 else 3  # padding may have no position
    ids = torch.full((1, length), token, device=device_of(model))
    inputs = {"input_ids": ids}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        inputs["attention_mask"] = torch.ones_like(ids)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    watching = _Watching()
    with torch.no_grad(), inference_mode_of(model), watching:
        model(**inputs)
    return watching.found
