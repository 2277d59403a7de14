"""A job's report: it survives JSON, says the same in three forms, and lets no name of a user break out of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dnge_compress.core.errors import CheckpointError
from dnge_compress.core.markdown import escape
from dnge_compress.core.terminal import plain, show
from dnge_compress.core.wording import duration, told_apart
from dnge_compress.jobs.report.job_report import JobReport, finished, write
from dnge_compress.jobs.report.measures import MEASURES, Milestone, Sample
from dnge_compress.jobs.report.verdict import verdict
from dnge_compress.lora.rank_grid import Rank, grid
from dnge_compress.plans.sensitivity import Sensitivity
from dnge_compress.plans.space_rows import SpaceRow
from dnge_compress.report.axes import decimals, layer_ticks, thinned, ticks
from dnge_compress.report.plots import Curve

VERDICTS = {
    "half is taken back": (2.0, 2.5, 2.25, "Training took back 50.0 % of the loss."),
    "more than all": (2.0, 2.0001, 1.5, "all of the loss and more: the result is better than the original"),
    "all": (2.0, 2.5, 2.0, "Training took back 100.0 % of the loss."),
    "nothing": (2.0, 2.5, 2.5, "Training made nothing better on the held-out rows (at best 2.600, at step 4"),
    "nothing lost": (2.0, 2.5, 1.9, "perplexity of held-out rows 7.389 → 6.686, nothing is lost on these rows"),
    "something new": (2.0, 2.5, 1.94, "what it has lost of other text, dnge compare on such text tells."),
    "next to nothing lost": (2.0, 2.5, 2.005, "next to nothing is lost"),
    "a little lost": (2.0, 2.5, 2.04, "a little is lost"),
    "something lost": (2.0, 2.5, 2.1, "clearly something is lost"),
    "much lost": (2.0, 2.5, 2.4, "much is lost: remove less, or train longer"),
    "what is kept": (2.0, 2.5, 2.4, "Kept is what training had at step 0, the lowest held-out loss (2.500) of 3 eval"),
    "smaller and faster": (2.0, 2.5, 2.4, "20.0 % smaller; speed +30.0 %;"),
}
ORIGINAL = Milestone(name="original", params=1000, bytes=4000, loss=2.0, tokens_per_second=500.0)
PRUNED = Milestone(name="pruned", params=800, bytes=3200, loss=2.5)
TRAINED = Milestone(name="trained", params=800, bytes=3200, loss=2.25, tokens_per_second=650.0)
COMPARED = Milestone(name="trained, uniform", params=800, bytes=3200, loss=2.375, tokens_per_second=640.0)
HOSTILE = "<script>alert('1')</script></style></svg>|`x`&\" onload=\"[a](b)\x1b[31m\u202e\n# x " + "y" * 120
EMPTY = JobReport(name="", model="m", output_dir="", stages=(), seconds={}, milestones=())
SECTIONS = (
    "In short",
    "Before and after",
    "Loss while training",
    "Samples",
    "Units kept",
    "Sensitivity",
    "Ranks",
    "Time",
    "Data",
    "Machine",
    "Notes",
)
VOID = {"meta", "link"}


def test_in_markdown_texts_stand_left_and_numbers_right() -> None:
    lines = full().to_markdown().splitlines()
    assert (
        lines[next(i for i, line in enumerate(lines) if line.startswith("| model | goes on with")) + 1] == "|---|---|"
    )
    assert any(line.startswith("|---|--:|--:|") for line in lines)


def test_samples_stand_apart_and_on_one_line() -> None:
    assert '\n"It was a …"\n' in (text := full().to_markdown())
    assert '|\n\n"She looked …"\n' in text
    assert "�" not in full().to_html()


@pytest.mark.parametrize("case", list(VERDICTS))
def test_the_verdict_says_in_words_what_came_of_it(case: str) -> None:
    before, cut, after, words = VERDICTS[case]
    milestones = [replace(m, loss=x) for m, x in zip((ORIGINAL, PRUNED, TRAINED), (before, cut, after), strict=True)]
    curve = Curve("trained", (), ((0, 2.5), (4, 2.6), (8, 2.7)))
    assert any(words in sentence for sentence in verdict(milestones, [curve]))


@pytest.mark.parametrize(
    ("before", "cut", "after"), [(2.0, 2.5, 1.96), (2.0, 1.9, None), (2.0, 1.9, 1.9), (math.inf, 2.5, 2.4)]
)
def test_the_verdict_speaks_of_other_text_only_where_training_taught_much(
    before: float, cut: float, after: float | None
) -> None:
    found = [replace(ORIGINAL, loss=before), replace(PRUNED, loss=cut)]
    found += [replace(TRAINED, loss=after)] if after is not None else []
    assert not any("other text" in sentence for sentence in verdict(found, []))


def test_the_verdict_tells_losses_apart_that_differ_little() -> None:
    curve = Curve("trained", (), ((0, 6.08252), (20, 6.08274)))
    milestones = [ORIGINAL, replace(PRUNED, loss=6.08252), replace(TRAINED, loss=6.08252)]
    words = "(at best 6.0827, at step 20; 6.0825 before the first step)"
    assert any(words in sentence for sentence in verdict(milestones, [curve]))
    assert told_apart(1.9, 1.9) == ("1.900", "1.900")


def test_the_verdict_without_pruning_speaks_of_the_model_it_began_with_and_of_nothing_where_nothing_was_done() -> None:
    still = replace(ORIGINAL, name="trained")
    assert verdict([ORIGINAL, still], [])[-1].endswith("so the result is the model it began with.")
    assert verdict([ORIGINAL], []) == () == verdict([PRUNED], [])
    unmeasured = verdict([ORIGINAL, replace(PRUNED, loss=None)], [])
    assert unmeasured == ("Against the original: 20.0 % smaller.",)
    broken = replace(TRAINED, loss=math.inf)
    assert not any("Training" in sentence for sentence in verdict([ORIGINAL, PRUNED, broken], []))


def full(layers: int = 3) -> JobReport:
    """A report in which every field says something; layer 1 was dropped."""
    widths = [
        SpaceRow(space=f"ffn.{i}", kind="neuron", layer=i, kept=0 if i == 1 else 24 + i % 7, total=40)
        for i in range(layers)
    ]
    ranks = [Rank(f"model.layers.{i}.{m}", (i * 5 + 1) % 9, 30) for i in range(layers) for m in ("attn.q", "mlp.up")]
    return JobReport(
        name="jobs/heal",
        model="tiny",
        output_dir="out/tiny",
        stages=("prune", "train", "merge"),
        seconds={"prune": 1.5, "train": 3725.0},
        milestones=(ORIGINAL, PRUNED, TRAINED, COMPARED),
        widths=(*widths, SpaceRow(space="layers", kind="layer", layer=None, kept=layers - 1, total=layers)),
        sensitivity=tuple(
            Sensitivity(space=w.space, kind=w.kind, layer=w.layer, gone=4, total=40, cost=0.1 * i)
            for i, w in enumerate(widths)
        ),
        ranks=(*ranks, Rank("lm_head", 4, 50)),
        curves=(
            Curve("trained", ((1, 2.5), (2, 2.25)), ((0, 2.5), (2, 2.25))),
            Curve("trained, uniform", held_out=((0, 2.5), (2, 2.375))),
        ),
        samples=(
            Sample("It was\na", {"original": "dark night.", "pruned": "dark dark."}),
            Sample("She looked", {"original": "up.", "pruned": "down."}),
        ),
        rows={"read": 1200, "cut_at_max_length": 7},
        machine={"device": "cpu"},
        notes=("a note",),
    )


def hostile() -> JobReport:
    """A report in which every text that comes from a user attacks."""
    bad = HOSTILE
    return JobReport(
        name=bad,
        model=bad,
        output_dir=bad,
        stages=(bad,),
        seconds={bad: 1.0},
        milestones=(replace(ORIGINAL, name=bad), replace(TRAINED, name=bad + "2")),
        widths=(
            SpaceRow(space=bad, kind="neuron", layer=None, kept=1, total=2),
            SpaceRow(space=bad + "2", kind=bad, layer=0, kept=1, total=2),
        ),
        sensitivity=(
            Sensitivity(space=bad, kind=bad, layer=1, gone=1, total=2, cost=math.inf, stack=bad),
            Sensitivity(space=bad, kind=bad, layer=2, gone=1, total=2, cost=-1.0),
        ),
        ranks=(Rank(bad, 1, 2), Rank(f"a.1.{bad}", 2, 4)),
        curves=(Curve(bad, ((1, 2.0),), ((1, 2.0), (2, 1.0))),),
        samples=(Sample(bad, {bad: bad}),),
        rows={bad: 1},
        machine={bad: bad},
        notes=(bad,) * 9,
    )


class Page(HTMLParser):
    """Collects elements, attributes and text, and checks that elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def headings(page: str) -> list[str]:
    """The sections of a page."""
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.mark.parametrize("report", [full(), hostile(), EMPTY], ids=["full", "hostile", "empty"])
def test_a_report_survives_json(report: JobReport) -> None:
    assert JobReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


def test_losses_that_are_not_finite_survive_json_and_are_said() -> None:
    report = replace(full(), milestones=(ORIGINAL, replace(TRAINED, loss=math.nan), replace(PRUNED, loss=math.inf)))
    again = JobReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert math.isnan(again.milestones[1].loss or 0) and again.milestones[2].loss == math.inf
    for text in (plain(report, 80), report.to_markdown(), report.to_html()):
        assert "not finite" in text and "nan" not in text.lower().replace("nanosecond", "")


def without(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """A dict less one key."""
    return {k: v for k, v in raw.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: without(raw, "dnge_job_report"), "no job report"),
        (lambda raw: [], "no job report"),
        (lambda raw: {**raw, "dnge_job_report": 2}, "version 2, and this package reads version 1"),
        (lambda raw: {**raw, "widhts": []}, "unknown key 'widhts'; did you mean 'widths'"),
        (lambda raw: without(raw, "model"), "'model' is missing"),
        (lambda raw: {**raw, "model": None}, r"job report\.model should be a text, not None"),
        (lambda raw: {**raw, "seconds": {"prune": "1"}}, r"seconds\.prune should be a number, not '1'"),
        (lambda raw: {**raw, "rows": {"read": True}}, r"rows\.read should be a whole number, not True"),
        (lambda raw: {**raw, "notes": "a"}, r"notes should be a list"),
        (lambda raw: {**raw, "milestones": [{"name": "a", "params": 1}]}, r"milestones\[0\]: 'bytes' is missing"),
        (lambda raw: {**raw, "curves": [{"name": "a", "train": [[1]]}]}, r"train\[0\] should have 2 items, not 1"),
        (lambda raw: {**raw, "ranks": [{"module": "a", "rank": -1, "params": 0}]}, "rank of module 'a' is -1"),
        (
            lambda raw: {**raw, "widths": [{"space": "ffn.0", "kind": "neuron", "layer": 0, "kept": 3, "total": 2}]},
            "3 of 2 units of space 'ffn.0'",
        ),
    ],
)
def test_a_report_that_is_wrong_is_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        JobReport.from_dict(change(full().to_dict()))
    assert "\n" not in str(error.value)


def test_every_form_holds_every_milestone_and_its_change() -> None:
    report = full()
    for text in (plain(report, 80), report.to_markdown(), Page(report.to_html()).text):
        for milestone in report.milestones:
            assert milestone.name in text
        for shown in ("−20.0 %", "+0.250", "+28.4 %", "+30.0 %", "7.39", "1 h 2 min", "not measured", "a note"):
            assert shown in text, shown
        assert "500" in text and "a · b" not in text


def test_what_was_not_measured_is_never_zero() -> None:
    unmeasured = replace(
        EMPTY,
        milestones=(Milestone(name="original", params=10, bytes=40), Milestone(name="pruned", params=5, bytes=20)),
    )
    for text in (plain(unmeasured, 80), unmeasured.to_markdown(), unmeasured.to_html()):
        assert "perplexity" not in text and "tokens/s" not in text
    half = replace(unmeasured, milestones=(replace(ORIGINAL, loss=None), TRAINED))
    loss = next(m for m in MEASURES if m.name == "loss")
    assert (loss.text(half.milestones[0]), loss.change(TRAINED, half.milestones[0])) == ("not measured", "")


def test_a_stage_without_a_time_is_listed_without_one() -> None:
    assert full().times == {"prune": 1.5, "train": 3725.0, "merge": None}
    assert re.search(r"merge +not measured", plain(full(), 80))


def test_the_result_is_the_last_milestone_that_is_no_compared_placement() -> None:
    assert full().result is TRAINED and EMPTY.result is None


@pytest.mark.parametrize("report", [full(), full(100), hostile()], ids=["full", "large", "hostile"])
@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_and_nothing_is_cut_off(report: JobReport, width: int) -> None:
    text = plain(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text and "\u202e" not in text
    for word in ("parameters", "perplexity", "tokens/s", "stage", "units", "kept", "adapters", "data", "machine"):
        assert word in text, word
    assert not re.search(r"\S…", text), "a cell was cut off"  # ranges of layers have spaces around theirs


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, width=80)
    with console.capture() as capture:
        console.print(full())
    assert not re.search(r"\x1b\[[0-9;]*(3|4|9)[0-7]", capture.get())


def test_a_terminal_without_unicode_gets_ascii(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.ConsoleOptions.ascii_only", property(lambda self: True))
    show(full().document())
    text = capsys.readouterr().out
    assert text.isascii() and "prune > train > merge" in text and "-20.0 %" in text and "?" not in text


def test_markdown_of_hostile_names_stays_tables() -> None:
    text = hostile().to_markdown()
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1
    assert not re.search(r"^# x", text, re.MULTILINE) and not re.search(r"(?<!\\)\[a", text)


@pytest.mark.parametrize(
    ("text", "escaped"), [("q_proj", "q_proj"), ("_a_", r"\_a\_"), ("a|b", r"a\|b"), ("<b>&", "&lt;b&gt;&amp;")]
)
def test_markdown_escapes_what_means_something(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.parametrize("report", [full(), full(100), hostile(), EMPTY], ids=["full", "large", "hostile", "empty"])
def test_a_page_is_whole_and_asks_nobody(report: JobReport) -> None:
    text = report.to_html()
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and "iframe" not in page.tags
    for tag, key, value in page.attributes:
        assert not key.startswith("on") and key != "src", (tag, key)
        assert "url(" not in value
        if "href" in key:
            assert value.startswith(("#", "data:"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "\x1b" not in text and "\u202e" not in text


def test_a_page_shows_hostile_names_as_text() -> None:
    page = Page(hostile().to_html())
    assert page.tags.count("style") == 1
    assert "<script>alert('1')</script></style></svg>" in page.text


def test_every_drawing_is_described_or_hidden_from_readers() -> None:
    text = full().to_html()
    drawings = re.findall(r"<svg(.*?)>(.*?)</svg>", text)
    assert len(drawings) > 10
    for attributes, content in drawings:
        assert 'aria-hidden="true"' in attributes or (content.startswith("<title>") and "<desc>" in content)


def test_every_rank_and_width_is_told_where_it_is_drawn() -> None:
    report = full()
    text = report.to_html()
    for layer, rank in enumerate(r.rank for r in report.ranks if r.module.endswith("attn.q")):
        assert f"<title>attn.q, layer {layer}: {f'rank {rank}' if rank else 'no adapter'}</title>" in text
    assert "layer 1, ffn.1: 0 of 40 neurons kept (0.0 %)" in text


@pytest.mark.parametrize(
    ("field", "empty", "gone"),
    [
        ("milestones", (), {"In short", "Before and after"}),
        ("samples", (), {"Samples"}),
        ("curves", (), {"Loss while training"}),
        ("curves", (Curve("trained"),), {"Loss while training"}),
        ("widths", (), {"Units kept"}),
        ("sensitivity", (), {"Sensitivity"}),
        ("ranks", (), {"Ranks"}),
        ("rows", {}, {"Data"}),
        ("machine", {}, {"Machine"}),
        ("notes", (), {"Notes"}),
    ],
)
def test_an_empty_section_vanishes(field: str, empty: Any, gone: set[str]) -> None:
    assert headings(full().to_html()) == list(SECTIONS)
    report = replace(full(), **{field: empty})
    assert headings(report.to_html()) == [s for s in SECTIONS if s not in gone]
    markdown = report.to_markdown()
    assert plain(report, 80) and not any(f"## {title}\n" in markdown for title in gone)


def test_an_empty_report_has_no_section_at_all() -> None:
    assert headings(EMPTY.to_html()) == [] and "##" not in EMPTY.to_markdown() and plain(EMPTY) == " m"


def test_odd_curves_are_drawn_without_a_number_that_is_none() -> None:
    odd = (
        Curve("one", ((0, 2.0),)),
        Curve("gap", ((1, 2.0), (2, math.nan), (3, 1.0))),
        Curve("none", ((1, math.nan),)),
    )
    for curves in (odd, odd[:1], odd[2:]):
        assert "nan" not in re.sub(r"<style>.*?</style>", "", replace(EMPTY, curves=curves).to_html(), flags=re.DOTALL)


def test_modules_are_sorted_by_type_and_layer() -> None:
    names = ("model.layers.0.attn.q", "model.layers.10.attn.q", "model.layers.2.moe.experts.7.up", "lm_head")
    placed = grid([Rank(name, i + 1, 10) for i, name in enumerate(names)])
    assert [row.name for row in placed.rows] == ["attn.q", "moe.experts.*.up", "lm_head"]
    assert placed.layers == tuple(range(11)) and placed.rows[0].cells == {0: (1,), 10: (2,)}


def test_a_type_says_of_how_many_modules_only_where_some_have_no_adapter() -> None:
    placed = grid([Rank("h.0.q", 2, 8), Rank("h.1.q", 0, 0), Rank("h.0.k", 1, 4), Rank("h.1.k", 1, 4)])
    assert [row.coverage for row in placed.rows] == ["1 of 2", "2"]


def test_stacks_that_number_their_layers_alike_are_kept_apart() -> None:
    placed = grid([Rank(f"{stack}.block.0.q", 1, 1) for stack in ("encoder", "decoder")])
    assert [row.name for row in placed.rows] == ["encoder.block.*.q", "decoder.block.*.q"]


def test_a_layer_number_of_any_size_costs_no_memory() -> None:
    assert grid([Rank("a.0.q", 1, 1), Rank("a.999999999.q", 1, 1)]).layers == (0, 999999999)


def test_writing_leaves_three_files_that_say_what_the_report_says(tmp_path: Path) -> None:
    report = full()
    paths = write(report, tmp_path / "new" / "folder")
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {"report.json", "report.md", "report.html"}
    assert finished(tmp_path / "new" / "folder") == report
    assert paths["md"].read_text(encoding="utf-8") == report.to_markdown()
    assert paths["html"].read_text(encoding="utf-8") == report.to_html()


@pytest.mark.parametrize("broken", ["json", "md", "html"])
def test_a_write_that_fails_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write(full(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real = Path.write_bytes

    def fail(file: Path, content: bytes) -> int:
        if f".{broken}." in file.name:
            real(file, content[: len(content) // 2])
            raise OSError("No space left on device")
        return real(file, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write(replace(full(), notes=("another",)), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_job_whose_report_is_missing_or_torn_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no report.json; run it again"):
        finished(tmp_path)
    write(full(), tmp_path)["json"].write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        finished(tmp_path)


def test_paths_that_are_no_text_are_reported_all_the_same(tmp_path: Path) -> None:
    paths = write(replace(full(), output_dir="out/\udcff"), tmp_path)
    assert "out/" in paths["html"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "< 0.1 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"), (725, "12 min 5 s"), (3599.7, "1 h")],
)
def test_durations_never_show_sixty_of_anything(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ticks_are_round_and_span_the_values() -> None:
    assert ticks(2.07, 2.44) == pytest.approx([2.0, 2.1, 2.2, 2.3, 2.4, 2.5])
    assert (decimals([2.0, 2.25]), decimals([0, 500])) == (2, 0)
    assert ticks(3.0, 3.0)[0] < 3.0 < ticks(3.0, 3.0)[-1]


def test_layers_of_a_second_stack_are_numbered_again() -> None:
    assert layer_ticks([0, 0, 1, 0, 1, None]) == [(0, 0), (2, 1), (3, 0), (4, 1)]
    assert [layer for _, layer in layer_ticks(range(100))] == [*range(0, 100, 10)]


def test_thinning_keeps_the_spikes() -> None:
    points = [(i, 9.0 if i == 777 else 1.0) for i in range(5000)]
    assert (777, 9.0) in thinned(points) and len(thinned(points)) <= 400


def test_text_on_the_page_has_enough_contrast() -> None:
    style = files("dnge_compress.report").joinpath("page.css").read_text(encoding="utf-8")
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--([\w-]+): (#\w+)", block))
        for ink in ("ink", "quiet", "accent"):
            assert contrast(colours[ink], colours["page"]) >= 4.5, ink
        assert contrast(colours["on-heat"], colours["heat"]) >= 4.5
        assert contrast(colours["on-heat"], colours["page"]) >= 4.5
        for i in range(5):
            assert contrast(colours[f"series-{i}"], colours["page"]) >= 3


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
