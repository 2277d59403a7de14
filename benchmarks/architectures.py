"""Every architecture of tiny_architectures.jsonl through the whole line: graph, plan, cut, save, plain reload.

    python benchmarks/architectures.py [--only llama,t5] [--part 0/2]

For each kind of unit, that many of them are removed (`RATIOS`), the result is saved, read back by plain transformers
and called: outputs must be equal to 1e-5. Writes results/architectures.json and .md,
and the summary in the README.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from harness import RESULTS, markdown, put_in_readme
from tiny_architectures import ARCHITECTURES, Tiny, inputs_of, main_output

import dnge_compress as dnge
from dnge_compress.core.errors import DngeError, first_line
from dnge_compress.graph.families import build_graph

RATIOS = {"neuron": 0.3, "head": 0.3, "layer": 0.4, "expert": 0.3}  # of the units
KINDS = {"neuron": ["neuron", "channel"], "head": ["head"], "layer": ["layer"], "expert": ["expert"]}
TOLERANCE = 1e-5
GROUPS = {
    "causal": "causal language models",
    "moe": "mixtures of experts",
    "encoder": "text encoders",
    "seq2seq": "encoder-decoders",
    "vision": "vision",
    "multimodal": "multimodal",
    "audio": "audio",
}
WORDS = {"plain": "yes", "uneven": "dnge only", "refused": "–"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one kind of unit: "plain" transformers reload the result, "uneven" loads with dnge only,
    "refused" with a reason, "wrong" or "crash" with what happened."""

    word: str
    detail: str = ""
    difference: float = 0.0


def tried(tiny: Tiny, kind: str) -> Outcome:
    """One architecture, one kind of unit."""
    model = tiny.build()
    try:
        small = dnge.compress(
            model, ratio=RATIOS[kind], of="units", kinds=KINDS[kind], tokens=512, length=16, scorer="obs"
        )
        with tempfile.TemporaryDirectory() as folder:
            dnge.save(small, folder, force=True)
            again: Any = dnge.load(folder) if small.dnge.plan.uneven else type(model).from_pretrained(folder)
        inputs = inputs_of(tiny.inputs)
        with torch.no_grad():
            ours, theirs = main_output(small(**inputs)), main_output(again(**inputs))
    except DngeError as e:
        return Outcome(word="refused", detail=first_line(e))
    except Exception as e:
        return Outcome(word="crash", detail=f"{type(e).__name__}: {first_line(e)}")
    apart = float((ours - theirs).abs().max() / ours.abs().max()) if ours.shape == theirs.shape else float("inf")
    if not apart <= TOLERANCE:
        return Outcome(word="wrong", detail="outputs differ", difference=apart)
    return Outcome(word="uneven" if small.dnge.plan.uneven else "plain", difference=apart)


def run(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The outcomes of some architectures by kind, with the family that read each and the seconds it took."""
    found = {}
    for name in names:
        tiny, started = ARCHITECTURES[name], time.perf_counter()
        outcomes = {kind: asdict(tried(tiny, kind)) for kind in KINDS}
        try:
            family = build_graph(tiny.build()).family
        except DngeError:
            family = "–"
        found[name] = {"group": tiny.group, "model_type": tiny.model_type, "family": family, **outcomes}
        words = ", ".join(f"{k} {v['word']}" for k, v in outcomes.items())
        print(f"{name}: {words} ({time.perf_counter() - started:.1f} s)", flush=True)
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """The outcomes as a Markdown page."""
    lines = ["# Architectures", ""]
    lines += [
        "What can be cut of each architecture so that plain `from_pretrained` reloads the result with equal outputs",
        "(1e-5), tried on a tiny random model of each by `benchmarks/architectures.py`. “dnge only” loads with",
        "`dnge_compress.load`; – was refused, with the reason in `architectures.json`.",
        "",
    ]
    lines += ["| | " + " | ".join(f"{k}s" for k in KINDS) + " |", "|---|" + "---|" * len(KINDS)]
    for word in ("plain", "uneven", "refused", "wrong", "crash"):
        counts = [sum(row[kind]["word"] == word for row in found.values()) for kind in KINDS]
        lines.append(f"| {word} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "| group | architecture | model type | read by | " + " | ".join(f"{k}s" for k in KINDS) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(KINDS))
    for name, row in sorted(found.items(), key=lambda item: (item[1]["group"], item[0])):
        cells = [WORDS.get(row[kind]["word"], row[kind]["word"]) for kind in KINDS]
        lines.append(f"| {row['group']} | {name} | {row['model_type']} | {row['family']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(found: dict[str, dict[str, Any]]) -> list[str]:
    """How many architectures of each group plain transformers reloads after a cut, for the README."""
    lines = []
    groups = list(dict.fromkeys(row["group"] for row in found.values()))
    for group in groups:
        rows = [row for row in found.values() if row["group"] == group]
        counts = [sum(row[kind]["word"] == "plain" for row in rows) for kind in KINDS]
        lines.append([GROUPS[group], str(len(rows)), *(str(n) if n else "–" for n in counts)])
    totals = [sum(row[kind]["word"] == "plain" for row in found.values()) for kind in KINDS]
    lines.append(["all", str(len(found)), *map(str, totals)])
    return markdown(["", "tried", *(f"{k}s" for k in KINDS)], lines)


def main() -> None:
    """Run what the command line names, and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names, with commas")
    parser.add_argument("--part", default="0/1", help="every n-th architecture from the i-th on, as i/n")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, step = map(int, options.part.split("/"))
    names = options.only.split(",") if options.only else list(ARCHITECTURES)[first::step]
    found = run(names)
    file = RESULTS / "architectures.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    merged = {name: (known | found)[name] for name in ARCHITECTURES if name in known | found}
    file.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(table(merged), encoding="utf-8")
    if merged.keys() == ARCHITECTURES.keys():
        put_in_readme("architectures", summary(merged))


if __name__ == "__main__":
    main()
