"""A hundred thousand inputs that nobody would write: documents with parts replaced, torn or doubled, and noise.

Hypothesis draws them. Each is read by the code that reads such files, in one forked process per kind, whose memory is
bounded and which may write nowhere but in its own folder. What is accepted is used as the commands use it. Where
`atheris` can be imported, it goes on from the same documents, guided by the coverage of the code that reads plans and
recipes.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from reliability_setting import FileWrites, Row, Setting, forked
from reliability_targets import TARGETS, Target

from dnge_compress.core.errors import DngeError

MUST = "an error in one line or a sound reading; within 10 s and a gigabyte, nothing written elsewhere"
SECONDS, MOST_BYTES, LONGEST = 10, 1 << 30, 2000  # the last in characters of a message
GUIDED = ("plans", "recipes")  # what atheris is let loose on
GUIDED_RUNS = 10_000
ODD = [
    10**30,
    -(10**30),
    -1,
    0,
    1,
    1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    " ",
    "..",
    "../../x",
    "/etc/passwd",
    "a" * 5000,
    "\u202e",
    "\ud800",
    "\x00",
    "\n",
    "𝄞",
    "1e999",
    "nan",
    "None",
    "{{x}}",
    "%s",
    "*",
    "[",
    "(?:",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"..": ".."},
    [0] * 1000,
]

MARKS = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"- ", b"&a ", b"*a", b"!!", b"9", b"2001-99-99"),
    *(b"[" * 3000, b'{"a":' * 3000, b"9" * 5000),
)


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Findings:
    """What went wrong, once for each place in the code, with the shortest input that shows it."""

    tried: int = 0
    accepted: int = 0
    found: dict[str, bytes] = field(default_factory=dict)

    def take(self, target: Target, payload: bytes) -> None:
        """Try one input."""
        self.tried += 1
        try:
            with at_most(SECONDS):
                target.read(payload)
            self.accepted += 1
        except DngeError as e:
            if "\n" in str(e) or not 0 < len(str(e)) < LONGEST:
                self._add(f"a message of {len(str(e))} characters: {str(e)[:150]!r}", payload)
        except BaseException as e:  # panics of Rust are no Exception
            frames = [f for f in traceback.extract_tb(e.__traceback__) if "dnge_compress" in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            self._add(f"{type(e).__name__} at {where}: {str(e)[:120]}", payload)

    def _add(self, what: str, payload: bytes) -> None:
        key = what.partition(": ")[0]
        known = next((k for k in self.found if k.startswith(key)), None)
        if known is None or len(payload) < len(self.found[known]):
            if known is not None:
                del self.found[known]
            self.found[what] = payload


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Hang in a block that takes longer."""

    def late(number: int, frame: Any) -> None:
        raise Hang(f"over {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per kind of input, and what atheris finds."""
    found = {name: partial(_fuzzed, setting, name) for name in TARGETS}
    if importlib.util.find_spec("atheris") is not None:
        found |= {f"{name}, guided by coverage (atheris)": partial(_guided, setting, name) for name in GUIDED}
    return found


def _fuzzed(setting: Setting, name: str) -> Row:
    count = setting.many(TARGETS[name].usual)

    def work(target: Target, findings: Findings, note: Callable[[bytes], None]) -> None:
        @seed(setting.seed)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        @given(payloads(target))
        def take(payload: bytes) -> None:
            note(payload)
            findings.take(target, payload)

        take()
        draw = random.Random(setting.seed)  # hypothesis stops early where it has tried everything
        while findings.tried < count:
            payload = noisy(draw.choice(target.seeds), draw)
            note(payload)
            findings.take(target, payload)

    return _in_fork(setting, name, work, 60 + count * 2)


def _guided(setting: Setting, name: str) -> Row:
    count = setting.many(GUIDED_RUNS)

    def work(target: Target, findings: Findings, note: Callable[[bytes], None]) -> None:
        import atheris

        corpus = Path("corpus")
        corpus.mkdir()
        for i, payload in enumerate(target.seeds):
            (corpus / str(i)).write_bytes(payload)

        def take(payload: bytes) -> None:
            note(payload)
            findings.take(target, payload)
            if findings.tried >= count:
                _report(findings)

        options = [
            sys.argv[0],
            str(corpus),
            f"-runs={count}",
            f"-seed={setting.seed + 1}",
            "-max_len=20000",
            "-verbosity=0",
            "-timeout=60",
            "-rss_limit_mb=0",
        ]
        atheris.Setup(options, take)
        for module in target.code:
            atheris.instrument_func(module)
        atheris.Fuzz()

    return _in_fork(setting, name, work, 60 + count * 2)


def _report(findings: Findings) -> None:
    print(
        json.dumps(
            {
                "tried": findings.tried,
                "accepted": findings.accepted,
                "found": {k: v[:200].decode("utf-8", "backslashreplace") for k, v in findings.found.items()},
            }
        )
    )
    sys.stdout.flush()


def _in_fork(setting: Setting, name: str, work: Callable[..., None], limit: float) -> Row:
    with setting.trial(*(p.name for p in setting.root.iterdir())) as folder:
        writes = FileWrites(allowed=(folder, Path("/dev/null")))

        def child() -> int:
            current = Path("current").open("wb", buffering=0)  # noqa: SIM115  # until the process ends

            def note(payload: bytes) -> None:
                current.seek(0)
                current.truncate()
                current.write(payload)

            tempfile.tempdir = str(folder)
            set_hypothesis_home_dir(folder / ".hypothesis")
            target, findings = TARGETS[name].make(folder), Findings()
            sys.addaudithook(writes)
            work(target, findings, note)
            _report(findings)
            return 0

        start = time.perf_counter()
        done = forked(child, folder, limit=limit, most_bytes=MOST_BYTES)
        lines = done.out.strip().splitlines()
        found = (
            json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"tried": 0, "accepted": 0, "found": {}}
        )
        failed = [f"{what} — {payload!r}" for what, payload in found["found"].items()]
        if not lines or (done.code and not found["tried"]):
            last = (folder / "current").read_bytes()[:200] if (folder / "current").exists() else b""
            failed.append(f"the process ended with {done.code}: {done.err.strip()[-300:]}; its last input: {last!r}")
    rate = found["tried"] / (time.perf_counter() - start)
    note = f"{found['accepted']:,} of {found['tried']:,} were sound; {rate:.0f} a second"
    return Row(part="fuzz", what="", must=MUST, tried=found["tried"], failed=tuple(failed), note=note)


def payloads(target: Target) -> st.SearchStrategy[bytes]:
    """Inputs of a kind: documents changed in a few places, torn texts, and noise."""
    documents = st.sampled_from(target.seeds)
    randoms = st.randoms(use_true_random=False)
    torn = st.builds(noisy, documents, randoms)
    if target.form == "json":
        parsed = st.sampled_from([json.loads(s) for s in target.seeds])
        changed = st.builds(changed_json, parsed, randoms)
        return st.one_of(changed, changed, torn, st.builds(_dumped, _JSON), st.binary(max_size=200))
    if target.form == "binary":
        return st.one_of(torn, st.binary(max_size=400))
    alphabet = st.characters(codec="utf-8")
    texts = st.text(st.one_of(alphabet, st.sampled_from("{}[]:,'\"#&*!|>%@=~.-\n\t 01ea")), max_size=300)
    return st.one_of(torn, torn, texts.map(str.encode), st.binary(max_size=100))


_JSON = st.recursive(
    st.one_of(st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def changed_json(document: Any, draw: random.Random) -> bytes:
    """A document with one to four of its parts replaced, taken out, renamed or doubled."""
    made = copy.deepcopy(document)
    for _ in range(draw.randint(1, 4)):
        places = list(_places(made))
        if not places:
            break
        holder, key = draw.choice(places)
        match draw.randrange(5):
            case 0 | 1:
                holder[key] = copy.deepcopy(draw.choice(ODD))
            case 2:
                del holder[key]
            case 3:
                other, there = draw.choice(places)
                try:
                    holder[key] = copy.deepcopy(other[there])
                except (KeyError, IndexError, RecursionError):
                    continue
            case 4 if isinstance(holder, dict):
                holder[str(draw.choice(ODD))] = holder.pop(key)
            case _:
                holder.insert(key, copy.deepcopy(draw.choice(ODD)))
    return _dumped(made)


def _places(value: Any, most: int = 400) -> Iterator[tuple[Any, Any]]:
    stack = [value]
    while stack and most:
        holder = stack.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, inner in list(items):
            most -= 1
            if not most:
                return
            yield holder, key
            if isinstance(inner, dict | list):
                stack.append(inner)


def noisy(document: bytes, draw: random.Random) -> bytes:
    """A document with one to six places torn out, doubled, swapped for noise or for an odd word."""
    made = bytearray(document)
    for _ in range(draw.randint(1, 6)):
        start = draw.randrange(len(made) + 1)
        stop = min(len(made), start + draw.choice((1, 1, 2, 8, 64)))
        match draw.randrange(5):
            case 0:
                del made[start:stop]
            case 1:
                made[start:start] = made[start:stop]
            case 2:
                made[start:stop] = bytes(draw.randrange(256) for _ in range(stop - start))
            case 3:
                made[start:stop] = str(draw.choice(ODD)).encode("utf-8", "surrogatepass")
            case 4:
                made[start:stop] = draw.choice(MARKS)
    return bytes(made)
