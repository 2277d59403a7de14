"""Token ids that configs and modules name, before and after tokens went: ends, pads, forced and forbidden ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from dnge_compress.core.errors import UnsupportedModelError
from dnge_compress.graph.vocabulary import rows_of

NAMED = re.compile(
    "^(?!.*codebook).*(token_ids?|token_index)$|^(bos|eos|pad|unk|mask)_index$|^padding_idx$"
    "|^((im|image|slice)_(start|end|newline|patch)|newline)_id$|^(image|audio)_token_offset$"
)
BY_NAME = ("lang_to_id", "task_to_id", "text_decoder_lang_to_code_id", "vocabulary_map")
OFFSETS = re.compile("^(image|audio)_token_offset$")  # the first of tokens that are counted on from it
MAYBE = re.compile("_(ids?|map|offset)$")  # what a token may be called by that nobody here knows
OTHERS = re.compile(
    "layer|hook|label|codebook|codec|stream|speaker|vocoder|^t2u_|^lang_id$|task_id$|^(tag|subs)_pad_id$|prompt_id$"
)  # the ids of other things
FORCED = ("forced_decoder_ids",)  # pairs of a place and a token
WANTED = ("force_words_ids",)
FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")  # what can't come any more is left out
BIASED = "sequence_bias"  # pairs of a sequence and a number, or a mapping
NewIds = Mapping[int, int]  # of the tokens that stay


def named_ids(model: Any) -> set[int]:
    """The ids that the config and the generation config give a meaning: those tokens have to stay.

    Raises UnsupportedModelError for a name that may be a token's, and isn't known.
    """
    rows = rows_of(model)
    values = [(name, value) for part in _configs(model, rows) for name, value in vars(part).items()]
    # Gemma 3n's towers count tokens of their own from an offset in those of the text.
    towers = [("vocab_offset", getattr(part, "vocab_offset", None)) for part in _nested(model.config)]
    _refuse_unknown(model, [*values, *towers], rows)
    found = {
        token
        for name, value in values
        if NAMED.search(name) or name in (*BY_NAME, *WANTED)
        for token in _whole_numbers(value)
    }
    forced = {pair[1] for name, value in values if name in FORCED for pair in value or ()}
    found |= {token for token in forced if token is not None}  # Whisper's place for a language that isn't known yet
    found |= {token for name, value in values if OFFSETS.search(name) for token in range(value or 0, rows)}
    return {token for token in found if 0 <= token < rows}


def renumber(model: Any, new: NewIds) -> None:
    """Give every id that configs and modules name its new number, in place, before any row goes."""
    rows = rows_of(model)
    for part in _configs(model, rows):
        for name, value in list(vars(part).items()):
            changed = _renumbered(name, value, new)
            if changed != value:
                setattr(part, name, changed)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if NAMED.search(name) and type(value) is int:
                setattr(module, name, new.get(value, value))
            if name == "vocabulary_mapping":  # Chameleon's and Emu3's, made of the config
                setattr(module, name, type(value)(model.config.vocabulary_map))


def renumbered_inputs(inputs: Any, new: NewIds) -> Any:
    """Model inputs with the new ids."""
    if not isinstance(inputs, Mapping):
        return inputs
    found = dict(inputs)
    for name, values in inputs.items():
        if name.endswith("input_ids"):
            ids = [new.get(token, token) for token in values.flatten().tolist()]
            found[name] = torch.tensor(ids, dtype=values.dtype, device=values.device).view_as(values)
    return found


def _refuse_unknown(model: Any, values: Sequence[tuple[str, Any]], rows: int) -> None:
    known = (*BY_NAME, *WANTED, *FORCED, *FORBIDDEN)
    for name, value in values:
        is_unknown = MAYBE.search(name) and name not in known and not (NAMED.search(name) or OTHERS.search(name))
        if is_unknown and any(0 <= token < rows for token in _whole_numbers(value)):
            raise UnsupportedModelError(
                f"the config of this {type(model).__name__} has '{name}', which may be ids of tokens that nothing here "
                "renumbers, so they stay; delete it from the config if it is something else"
            )


def _configs(model: Any, rows: int) -> Iterator[Any]:
    """The config, those nested in it that don't count other tokens, and the generation config."""
    yield from (part for part in _nested(model.config) if getattr(part, "vocab_size", rows) in (rows, None))
    if getattr(model, "generation_config", None) is not None:
        yield model.generation_config


def _nested(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig) and value is not config:
            yield from _nested(value)


def _renumbered(name: str, value: Any, new: NewIds) -> Any:
    if value is None:
        return None
    if NAMED.search(name) or name in (*BY_NAME, *WANTED):
        return _mapped(value, new)
    if name in FORCED:
        return [[place, new.get(token, token)] for place, token in value]
    if name in FORBIDDEN:
        return [_mapped(item, new) for item in value if _stay(item, new)]
    if name == BIASED and isinstance(value, Mapping):
        return {tuple(_mapped(list(k), new)): v for k, v in value.items() if _stay(list(k), new)}
    if name == BIASED:
        return [[_mapped(tokens, new), bias] for tokens, bias in value if _stay(tokens, new)]
    return value


def _mapped(value: Any, new: NewIds) -> Any:
    """A number, or the numbers in lists and mappings, renumbered; what is no token stays as it is."""
    if isinstance(value, Mapping):
        return {key: _mapped(inner, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(inner, new) for inner in value)
    return new.get(value, value) if type(value) is int else value


def _stay(value: Any, new: NewIds) -> bool:
    return all(token in new or token < 0 for token in _whole_numbers(value))


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _whole_numbers(inner)
    elif type(value) is int:
        yield value
