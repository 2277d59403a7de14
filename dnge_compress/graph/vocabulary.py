"""The axis of a model's tokens: embedding, head, their biases, and the config's key, found by changing that key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from dnge_compress.core.errors import DataError, UnsupportedModelError
from dnge_compress.graph.derivation.architecture import Architecture, Outline
from dnge_compress.graph.derivation.config_keys import Key, as_dict, changed, spelled
from dnge_compress.graph.families.derived import KEPT_SIZES
from dnge_compress.graph.types import ConfigField, ModelGraph, Slot, Space, Step

SPACE = "vocabulary"
COUNTS = ("vocab_size", "n_words", "decoder_vocab_size", "vocab_size_per_layer_input")  # XLM's, Marian's, Gemma 3n's
MORE = 64  # tokens than there are, to see what the config's key counts


def vocabulary_graph(model: Any) -> ModelGraph:
    """A graph of one space, the tokens, with every tensor that has a row for each. The model is only read.

    Raises UnsupportedModelError for a model that reads no token ids, or whose config doesn't count them.
    """
    rows = rows_of(model)
    config = as_dict(model.config)
    keys = tuple(_keys(config, rows))
    architecture = Architecture(type(model), type(model.config))
    old, new = (architecture.outline(changed(config, dict.fromkeys(keys, rows + more))) for more in (0, MORE))
    held = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    if not keys or old is None or new is None or not (slots := tuple(_slots(old, new, held))):
        raise UnsupportedModelError(
            f"the config of this {type(model).__name__} doesn't count its {rows:,} tokens (vocab_size), so they stay"
        )
    return ModelGraph(
        family=SPACE,
        spaces=(Space(name=SPACE, units=rows, kind="vocabulary"),),
        slots=slots,
        steps=(Step(index=0, op="embed", reads=(), writes=(SPACE,), params=tuple(slot.param for slot in slots)),),
        config_fields=tuple(ConfigField(key=spelled(key), spaces=(SPACE,)) for key in keys),
        attributes=tuple(
            (SPACE, module, name, 1)
            for (module, name), count in new.counts.items()
            if count - old.counts.get((module, name), count) == MORE and name not in KEPT_SIZES
        ),
    )


def rows_of(model: Any) -> int:
    """How many token ids a model has embeddings for. Raises UnsupportedModelError for one that reads no token ids."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # no text, or several towers
        table = None
    if not isinstance(table, nn.Embedding):
        raise UnsupportedModelError(f"a {type(model).__name__} reads no token ids, so it has no vocabulary to cut")
    return len(table.weight)


def refuse_unknown(holder: str, *tokens: int, rows: int, tokenizer: Any = None) -> None:
    """Raise DataError if one of `tokens`, the largest id of what `holder` names ("the prompt holds") or the smallest as
    well, has no embedding among a model's `rows`."""
    for token in tokens:
        if token < 0:
            raise DataError(
                f"{holder} token {token}, and ids begin at 0; write the padding token's (-100 is for labels)"
            )
        if token >= rows:
            named = "" if tokenizer is None else f" ('{tokenizer.convert_ids_to_tokens(token)}')"
            raise DataError(
                f"{holder} token {token}{named}, but the model has {rows:,} rows; use the tokenizer that it was "
                "trained with, or save the model with resized embeddings"
            )


def params_per_token(model: Any, graph: ModelGraph) -> int:
    """How many parameters go with one token."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(sizes.get(slot.param, 0) for slot in graph.slots) // graph.space(SPACE).units


def _keys(config: Mapping[str, Any], rows: int, path: Key = ()) -> Iterator[Key]:
    """Every key, also of nested configs, that counts the tokens."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _keys(value, rows, (*path, name))
        elif name in COUNTS and value == rows:
            yield (*path, name)


def _slots(old: Outline, new: Outline, held: set[str]) -> Iterator[Slot]:
    for name, shape in old.shapes.items():
        for axis, (before, after) in enumerate(zip(shape, new.shapes[name], strict=True)):
            if after - before == MORE and name in held:
                yield Slot(param=name, axis=axis, space=SPACE)
