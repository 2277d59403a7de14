"""Words and numbers of YAML as they are written: YAML programs don't agree on what `010`, `1:30`, `no` or `2e-4` is.

Here `yes`, `no` and dates are text, 2e-4 is a number, and a number remembers how it was written: where a recipe wants
text it is that text, and elsewhere one that programs read differently is refused (keys.py).
"""

from __future__ import annotations

import re
from typing import Any

import yaml

# Of YAML 1.1: what is text in YAML 1.2.
TEXT_TODAY = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value", "tag:yaml.org,2002:merge")
BOOL = "tag:yaml.org,2002:bool"
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
BINARY = re.compile(r"[-+]?0b[01_]+")


class PlainInt(int):
    """A whole number, and the `text` that it was written as."""

    text: str

    def __new__(cls, value: int, text: str) -> PlainInt:
        """The number `value`, written as `text`."""
        made = super().__new__(cls, value)
        made.text = text
        return made


class PlainFloat(float):
    """A number, and the `text` that it was written as."""

    text: str

    def __new__(cls, value: float, text: str) -> PlainFloat:
        """The number `value`, written as `text`."""
        made = super().__new__(cls, value)
        made.text = text
        return made


class Loader(yaml.SafeLoader):
    """YAML without words that mean something else: only true and false are no text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (*TEXT_TODAY, BOOL)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def scalar(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """The value of a node; quoted words stay text, and numbers without quotes are a PlainInt or PlainFloat."""
    value = loader.construct_object(node, deep=True)
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or isinstance(value, bool):
        return value
    text = str(node.value)
    if isinstance(value, int):
        return PlainInt(value, text)
    if isinstance(value, float):
        return PlainFloat(value, text)
    return _number(value) if isinstance(value, str) else value


def two_readings(number: PlainInt | PlainFloat) -> str:
    """How else a number that was written so is read ("8 or 10"); "" if everybody reads it alike."""
    text = number.text
    if ":" in text:
        return f"{number:g} or as text"
    if BINARY.fullmatch(text):
        return f"{number} or as text"
    if LEADING_ZERO.fullmatch(text):
        digits = text.replace("_", "")
        octal = str(int(digits, 8)) if not re.search("[89]", digits) else "text"
        decimal = str(int(digits))
        return f"{octal} or {decimal}" if octal != decimal else ""
    return ""


def _number(text: str) -> Any:
    """YAML 1.1 takes 2e-4 and 08 for text; everybody else takes them for numbers."""
    if LEADING_ZERO.fullmatch(text):
        return PlainInt(int(text.replace("_", "")), text)
    if "e" in text.lower() and text[:1] in "+-.0123456789":
        try:
            return PlainFloat(float(text), text)
        except ValueError:
            return text
    return text
