"""A document as one HTML page: its tables, and drawings beside them. No script, no request, nothing outside the file.

`page.html.j2` is its template, `page.css` its style sheet.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from dnge_compress.core.document import Document, Facts
from dnge_compress.core.wording import safe

# Should a name ever slip through the escaping, the browser still runs nothing and asks nobody.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LONG = 44  # names up to here stay on one line on wide screens


def page(document: Document) -> str:
    """The whole page."""
    style = Markup(files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
    return _template().render(document=document, style=style, policy=POLICY, long=LONG)


@cache
def _template() -> Template:
    # Blocks are told apart by name; drawings were made by `markup.tag`, which escapes what it is given.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_safe, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["kind"] = lambda value: type(value).__name__
    environment.filters["drawing"] = Markup
    environment.tests["only_facts"] = lambda section: all(isinstance(b, Facts) for b in section.blocks)
    return environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))


def _safe(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else safe(value)
