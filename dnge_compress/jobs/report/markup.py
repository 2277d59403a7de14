"""HTML and SVG that can't be broken out of: text is escaped unless it was made here."""

from __future__ import annotations

import html

from dnge_compress.jobs.report.wording import safe

EMPTY = frozenset({"meta", "link", "br"})


class Markup(str):
    """A piece of HTML. Only `tag` and `joined` make one; any other str is text."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Children that aren't Markup are escaped; attributes that are None are left out.

    In names of attributes `_` stands for `-`, and a last one is dropped: `class_`, `aria_label`.

        tag("p", "1 < 2", class_="note")
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>" if name in EMPTY else f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: object) -> Markup:
    """Pieces one after the other; None is left out."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(_text(c)) for c in children if c is not None))


def _text(value: object) -> str:
    """Coordinates with two decimals at most, everything else as it is, without control characters."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else safe(str(value))
