"""What commands print: data on stdout, and where it lies on stderr."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from typing import Any

from dnge_compress.core.wording import safe, several


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def print_text(text: str) -> None:
    """JSON on stdout; where that can't be written there, characters are escaped."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    print(text)


def print_passage(text: str) -> None:
    """Text with its breaks on stdout, without what could steer a terminal; a letter that can't be written there is a
    question mark."""
    shown = "\n".join(map(safe, text.expandtabs(4).split("\n")))
    encoding = sys.stdout.encoding or "utf-8"
    print(shown.encode(encoding, "replace").decode(encoding))


def say_how_written(made: Any, asked: int) -> None:
    """A line on stderr: how much of what the model wrote, and why no more."""
    read = f"{several(made.prompt_tokens, 'token')} of {'a conversation' if made.is_chat else 'bare text'}"
    less = f", all that it has positions for ({asked:,} were asked)" if made.room < asked else ""
    ended = ", and ended there" if made.has_ended else less
    print(f"dnge: behind {read} the model wrote {several(made.tokens, 'token')}{ended}", file=sys.stderr)


def print_html(text: str) -> None:
    """A page, which says that it is UTF-8, on stdout; where that writes something else, characters are escaped."""
    if (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8":
        text = text.encode("ascii", "xmlcharrefreplace").decode()
    print(text)


def say_what_now(model: Any, options: Namespace) -> None:
    """Three lines on stderr behind a saved model: where it is, how to load it, what to do next."""
    if options.json:
        return
    name, has_config = type(model).__name__, hasattr(model, "config")
    path = json.dumps(str(options.output), ensure_ascii=False)
    if not has_config or model.dnge.plan.uneven:
        load = f"dnge_compress.load({path})"
    else:
        load = f"transformers.{name}.from_pretrained({path})"
    print(f"saved to   {options.output}", file=sys.stderr)
    print(f"load with  {load}", file=sys.stderr)
    print(f"next       dnge place {shlex.quote(str(options.output))}  # where LoRA would go", file=sys.stderr)
