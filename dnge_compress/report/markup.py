"""SVG that can't be broken out of: text is escaped unless it was made here."""

from __future__ import annotations

from markupsafe import Markup, escape

from dnge_compress.core.wording import safe


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Children that aren't Markup are escaped; attributes that are None are left out.

    In names of attributes `_` stands for `-`, and a last one is dropped: `class_`, `aria_label`.

        tag("p", "1 < 2", class_="note")
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(c if isinstance(c, Markup) else _text(c) for c in children if c is not None)
    return Markup(f"<{name}{given}>{inside}</{name}>")  # escaped above


def _text(value: object) -> str:
    """Coordinates with two decimals at most, everything else as it is, without control characters."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else safe(str(value))
