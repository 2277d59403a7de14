"""What a row teaches, whatever its columns are called: a text, an answer to a prompt, or a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from dnge_compress.data.conversations import Conversation, conversation, exchange
from dnge_compress.data.fields import fields
from dnge_compress.recipes.data_schema import Dataset


@dataclass(frozen=True)
class Answer:
    """A prompt, and the completion that is learned; nothing stands between them."""

    prompt: str
    completion: str


Lesson: TypeAlias = str | Answer | Conversation

CONVERSATIONS = ("messages", "sharegpt")  # the types that need a chat template
MAY_SPEAK = (*CONVERSATIONS, "alpaca", "prompt_completion")  # those that use one in some rows at least
# For models without a template of their own: the prompt of Taori et al., Stanford Alpaca (2023), with a line break
# behind its end, as training programs write it since.
ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
)
PAIRED = ", paired with an input that provides further context"


def lesson(row: Mapping[str, Any], source: Dataset, place: str, *, speaks: bool) -> Lesson | None:
    """What is learned from a row, or None if there is nothing in it. Raises DataError naming the `place`.

    Rows of type "alpaca" are conversations for a tokenizer that `speaks`, which is to say has a chat template, and
    Alpaca's own prompts for others.
    """
    ours = fields(row, source, place)
    if ours is None:
        return None
    match source.type:
        case "text":
            return str(ours["text"])
        case "prompt_completion":
            if isinstance(ours["prompt"], str) and isinstance(ours["completion"], str):
                return Answer(ours["prompt"], ours["completion"])
            return exchange(ours, (source.column("prompt"), source.column("completion")), place)
        case "alpaca":
            return _instructed(ours) if speaks else _alpaca(ours)
    column = source.column("messages" if source.type == "messages" else "conversations")
    return conversation(ours, source.type, column, place)


def _instructed(ours: Mapping[str, str]) -> Conversation:
    asked = "\n\n".join(ours[name] for name in ("instruction", "input") if ours.get(name, "").strip())
    said = [("system", ours["system"])] if "system" in ours else []
    said += [("user", asked), ("assistant", ours["output"])]
    messages = tuple({"role": role, "content": content} for role, content in said)
    return Conversation(messages, tuple(role == "assistant" for role, _ in said))


def _alpaca(ours: Mapping[str, str]) -> Answer:
    has_input = bool(ours.get("input", "").strip())
    parts = [ours.get("system") or ALPACA.format(paired=PAIRED if has_input else "")]
    parts.append(f"### Instruction:\n{ours['instruction']}")
    parts += [f"### Input:\n{ours['input']}"] if has_input else []
    return Answer("\n\n".join((*parts, "### Response:\n")), ours["output"])
