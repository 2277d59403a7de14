"""Names and numbers as readers see them, the same in the terminal, in Markdown and on a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

NOT_MEASURED = "not measured"
NO_HARNESS = "tasks need lm-evaluation-harness: pip install 'dnge-compress[tasks]'"
UNKNOWN = "–"
# Controls, lone surrogates, and the marks that turn the direction of all text after them.
UNSAFE = ("Cc", "Cs")
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Range = tuple[float, float]


def clean(text: object) -> str:
    """A name or note on one line; what could steer a terminal or turn a page around becomes �."""
    return safe(" ".join(str(text).split()))


def safe(text: str) -> str:
    """The same text, with � for characters that could steer a terminal or turn a page around."""
    return "".join("�" if unicodedata.category(c) in UNSAFE or c in TURNING else c for c in text)


def kind(value: object) -> str:
    """What a value is, in a word or two: "class Linear", "dict"."""
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__


def spoken(key: str) -> str:
    """A key as words: `cut_at_max_length` → "cut at max length"."""
    return key.replace("_", " ")


def count(n: float, unit: str = "") -> str:
    """Three digits and a decimal prefix, e.g. 22.7 M."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size * 0.9995:
            digits = f"{n / size:#.3g}".rstrip(".") if n < size * 999.5 else f"{n / size:,.0f}"
            return f"{digits} {prefix}{unit}"
    return f"{n:.0f} {unit}".rstrip()


def counts(values: Sequence[float], unit: str = "") -> list[str]:
    """Several whole numbers as `count` writes them, or in full where that doesn't tell them apart."""
    short = [count(n, unit) for n in values]
    return short if len({*short}) == len({*values}) else [f"{n:,.0f} {unit}".rstrip() for n in values]


def extent(values: Iterable[float]) -> Range:
    """The lowest and the highest of some numbers."""
    known = list(values)
    return min(known), max(known)


def span(extent: Range) -> str:
    """A range in words, or one number where both ends are equal."""
    low, high = extent
    return f"{low:,.0f}" if low == high else f"{low:,.0f}–{high:,.0f}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: "0–2, 5"; of many runs, the first two and the last."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    shown = [str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs]
    return ", ".join(shown) if len(shown) <= 3 else f"{', '.join(shown[:2])} … {shown[-1]}"


def cost_span(extent: Range) -> str:
    """A range of costs, with two digits each."""
    low, high = (f"{value:.2g}" for value in extent)
    return low if low == high else f"{low}–{high}"


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


def told_apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with three decimals, or with as many more as it takes to tell them apart, where seven do."""
    digits = next((n for n in range(3, 8) if f"{a:.{n}f}" != f"{b:.{n}f}"), 3)
    return f"{a:.{digits}f}", f"{b:.{digits}f}"


def several(n: int, noun: str) -> str:
    """A count and its noun: "1 adapter", "1,200 adapters"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
