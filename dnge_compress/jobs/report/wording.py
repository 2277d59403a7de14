"""Names and numbers as readers see them, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

import unicodedata

NOT_MEASURED = "not measured"
# Controls, lone surrogates, and the marks that turn the direction of all text after them.
UNSAFE = ("Cc", "Cs")
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: object) -> str:
    """A name or note on one line; what could steer a terminal or turn a page around becomes �."""
    return safe(" ".join(str(text).split()))


def safe(text: str) -> str:
    """The same text, with � for characters that could steer a terminal or turn a page around."""
    return "".join("�" if unicodedata.category(c) in UNSAFE or c in TURNING else c for c in text)


def spoken(key: str) -> str:
    """A key as words: `cut_at_max_length` → "cut at max length"."""
    return clean(key.replace("_", " "))


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter, e.g. "4.2 s", "12 min 5 s", "3 h 12 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "< 0.1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h" + (f" {minutes} min" if minutes else "")


def percent(share: float) -> str:
    """A share (0..1) with one decimal."""
    return f"{100 * share:.1f} %"


def signed(value: float, form: str) -> str:
    """A difference with its sign, none where it shows as zero; `form` is a format such as ".3f"."""
    size = format(abs(value), form)
    if not any(digit in size for digit in "123456789"):
        return size
    return f"{'−' if value < 0 else '+'}{size}"


def several(n: int, noun: str) -> str:
    """A count and its noun: "1 adapter", "1,200 adapters"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
