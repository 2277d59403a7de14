"""A JobReport as one HTML page: its tables, and the plots beside them. No script, no request, nothing outside the file.

The style sheet is `page.css`, beside this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from dnge_compress.jobs.report import panels, plots
from dnge_compress.jobs.report.markup import Markup, joined, tag
from dnge_compress.jobs.report.measures import Measure, measured
from dnge_compress.jobs.report.wording import NOT_MEASURED, duration, spoken

if TYPE_CHECKING:
    from dnge_compress.jobs.report import JobReport, Milestone

# Should a name ever slip through the escaping, the browser still runs nothing and asks nobody.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def report(report: JobReport) -> str:
    """The whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{report.model or 'Model'}: job report"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(files("dnge_compress.jobs.report").joinpath("page.css").read_text(encoding="utf-8"))),
    )
    main = tag("main", _header(report), *_sections(report))
    return f"<!doctype html>\n{tag('html', head, tag('body', main), lang='en')}\n"


def _sections(report: JobReport) -> Iterator[Markup]:
    """Those that have something to say."""
    if report.milestones:
        yield _section("Before and after", *_comparison(report.milestones))
    if any(c.train or c.held_out for c in report.curves):
        yield _section("Loss while training", *panels.losses([c for c in report.curves if c.train or c.held_out]))
    if report.widths:
        yield _section("Units kept", *panels.widths(report.widths))
    if report.ranks:
        yield _section("Ranks", *panels.ranks(report.ranks))
    facts = [
        _section("Time", _stages(report.times)) if report.times else None,
        _facts("Data", {spoken(key): f"{n:,}" for key, n in report.rows.items()}),
        _facts("Machine", {spoken(key): value for key, value in report.machine.items()}),
    ]
    if any(facts):
        yield tag("div", *facts, class_="side-by-side")
    if report.notes:
        yield _section("Notes", tag("ul", *(tag("li", note) for note in report.notes), class_="notes"))


def _header(report: JobReport) -> Markup:
    stages = joined(*(tag("li", stage) for stage in report.stages))
    return tag(
        "header",
        tag("p", "Job report", f" · {report.name}" if report.name else None, class_="eyebrow"),
        tag("h1", report.model or "Model"),
        tag("ol", stages, class_="stages", aria_label="Stages") if stages else None,
        tag("p", tag("code", report.output_dir), class_="place") if report.output_dir else None,
        _headline(report.milestones[0], report.result) if report.milestones else None,
    )


def _headline(original: Milestone, result: Milestone | None) -> Markup | None:
    """What the job changed, in a few large numbers."""
    if result is None or result is original:
        return None
    told = [
        m
        for m in measured([original, result])
        if m.name != "loss" and m.change(result, original) and m.text(result) != m.text(original)
    ]
    tiles = (
        tag(
            "div",
            tag("dt", m.name),
            tag("dd", m.change(result, original), class_="change"),
            tag("dd", f"{m.text(original)} → ", tag("b", m.text(result)), class_="from-to"),
        )
        for m in told
    )
    return tag("dl", *tiles, class_="headline") if told else None


def _comparison(milestones: Sequence[Milestone]) -> Iterator[Markup]:
    measures, original = measured(milestones), milestones[0]
    headings = (tag("th", m.name, tag("small", m.unit) if m.unit else None, scope="col") for m in measures)
    rows = (
        tag(
            "tr",
            tag("th", milestone.name, scope="row"),
            *(tag("td", *_value(m, milestone, milestones), data_label=_label(m)) for m in measures),
        )
        for milestone in milestones
    )
    head = tag("thead", tag("tr", tag("td"), *headings))
    yield tag("table", head, tag("tbody", *rows), class_="comparison")
    if len(milestones) > 1:
        kinds = "Bars start at zero"
        if any(m.is_quality for m in measures):
            kinds += "; dots run from the lowest to the highest value, on the scale of the loss"
        yield tag("p", f"Changes are against {original.name}, which the upright line marks. {kinds}.", class_="caption")


def _label(measure: Measure) -> str:
    return f"{measure.name}, {measure.unit}" if measure.unit else measure.name


def _value(measure: Measure, milestone: Milestone, milestones: Sequence[Milestone]) -> Iterator[Markup]:
    """The number, its change, and where it stands among those of the other milestones."""
    value = measure.of(milestone)
    if value is None:
        yield tag("span", NOT_MEASURED, class_="quiet")
        return
    yield tag("span", measure.text(milestone), class_="number")
    change = measure.change(milestone, milestones[0])
    if change:
        yield tag("span", change, class_="change")
    place, origin = _placed(measure, milestone, milestones), _placed(measure, milestones[0], milestones)
    if place is not None and len(milestones) > 1:
        yield plots.dot(place, origin) if measure.is_quality else plots.bar(place, origin)


def _placed(measure: Measure, milestone: Milestone, milestones: Sequence[Milestone]) -> float | None:
    """Where a value stands (0..1) from zero to the highest; as for quality, from the lowest loss to the highest."""
    of = (lambda m: m.loss) if measure.is_quality else measure.of
    known = [v for m in milestones if (v := of(m)) is not None and math.isfinite(v)]
    value = of(milestone)
    if value is None or not math.isfinite(value):
        return None
    low, high = min(known) if measure.is_quality else 0.0, max(known)
    return (value - low) / (high - low) if high > low else 0.5


def _stages(times: Mapping[str, float | None]) -> Markup:
    total = sum(s for s in times.values() if s is not None)
    rows = [
        tag("tr", tag("th", stage, scope="row"), tag("td", NOT_MEASURED, class_="quiet", colspan=2))
        if seconds is None
        else tag(
            "tr",
            tag("th", stage, scope="row"),
            tag("td", duration(seconds)),
            tag("td", plots.bar(seconds / total if total else 0)),
        )
        for stage, seconds in times.items()
    ]
    if len(rows) > 1:
        rows.append(
            tag("tr", tag("th", "together", scope="row"), tag("td", duration(total)), tag("td"), class_="total")
        )
    return tag("table", tag("tbody", *rows), class_="times")


def _facts(title: str, facts: Mapping[str, str]) -> Markup | None:
    if not facts:
        return None
    return _section(
        title, tag("dl", *(joined(tag("dt", key), tag("dd", v)) for key, v in facts.items()), class_="facts")
    )


def _section(title: str, *content: Markup) -> Markup:
    return tag("section", tag("h2", title), *content)
