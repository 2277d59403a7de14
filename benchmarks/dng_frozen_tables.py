"""The table of INR2JLS on a frozen encoder: everything that was measured."""

from __future__ import annotations

from typing import Any

from harness import kept_rows, markdown, over_seeds, write

ANCHORS = {
    "mnist": "published 98.6 (45,000 images, eleven fits each, 400,000 + 200,000 steps)",
    "cifar10": "published 73.2 (45,000 images, eleven fits each, 400,000 + 200,000 steps)",
}
OFFICIAL = [0.2, 0.5]  # dropout
FITTING = {"mnist": 11.9, "cifar10": 16.9}  # ms of CPU time a network: `dnge inr`, 25,000 and 18,000, as `times` says
HEAD = ("arm", "networks", "steps", "seeds", "drawn, dB", "frozen, %", "tuned, %", "draw + head + tune, CPU min")
NOTES = """Self-fitted SIRENs [2, 32, 32, c], one fit an image, from random initialisations, the first of their split;
accuracy on networks of held-out images, mean ± half of the 95 % interval over seeds (Student's t; none with one seed)
of initial values, moves, draws and dropout: the fits are the same. Arms are comparable where networks and steps agree.
*Networks*: learned from × copies / judged; a copy is the network as it is, the others are moved at random, exactly, on
the weights. *Steps*: to draw / of the head / to tune all, of 64 networks; of the head in two of the six views, drawn
for each network. All arms have one head: three strided convolutions of 256, dropout of .2 and before the last layer .5
unless said otherwise, a perceptron; AdamW with weight decay .1, a warm-up of a tenth of the steps. Drawn: the first
1,000. CPU minutes of one core, reading the networks included: marked with * on a CPU without bfloat16 instructions,
the others with AMX. CIFAR-10 is a JPEG copy.

*Rendered* knows the function at every pixel (or at as many points as the walk has channels) and has no
encoder: its pixels are the latents. INR2JLS on a frozen encoder can't know more than its own renderings show,
but on MNIST the head learns more in as many steps from latents that have learned to draw than from pixels: after 600,
800 and 5,000 it is ahead of this bound; on CIFAR-10 it is behind after 600.
Latents are told apart by view (their places are learned for each), pixels
aren't; what that is worth wasn't measured. Where the walk stays as it
began, it is the network's inference at the points, message by message, so the skip hands those answers to the
cells: what *rendered at as many points* reads as well, and what is learned lies in latents and head. A static graph
whose rounds hear messages alone is the same function, whatever either has learned, and costs up to three times as
much (a test holds them together); one that can remember is beside the dynamic graph in dng_paper.md. *Tuned*: steps
after the head at a rate of its own, on networks moved anew in every step; all learns, or all but the walk. Rates,
steps and parts were chosen on the end of the train split, which these rows didn't learn from; they have more steps
than the frozen rows beside them, and what of the gain is steps, moves or latents wasn't told apart.
Random initial values: message passing that never learned, of the same size, with the same skip."""


def publish() -> None:
    """Write the table of everything that was measured."""
    rows, lines = kept_rows("dng_frozen"), []
    for data, anchor in ANCHORS.items():
        arms: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for r in (r for r in rows if r["data"] == data):
            head = f"{r['steps'][0] if 'drawing' in r else '–'} / {r['steps'][1]} / {r['steps'][2] or '–'}"
            mixed = f", mixup {r['mixup']}" if r["mixup"] else ""
            mixed += "" if r["dropout"] == OFFICIAL else f", dropout {r['dropout'][0]} and {r['dropout'][1]}"
            mixed += f", tuned at {r['tuning rate']:g}{_parts(r)}" if "fine-tuned" in r else ""
            arms.setdefault((r["arm"] + mixed, f"{r['learned']} × {r['copies']} / {r['judged']}", head), []).append(r)
        if not arms:
            continue
        cells = [[*known, str(len(found)), over_seeds([r["dB"] for r in found if "dB" in r], 2),
                  over_seeds([100 * r["accuracy"] for r in found], 2),
                  over_seeds([100 * r["fine-tuned"] for r in found if "fine-tuned" in r], 2), _minutes(found)]
                 for known, found in arms.items()]  # fmt: skip
        lines += [f"## {data}", "", f"Anchor: {anchor}.", "", *markdown(HEAD, cells), "", *_whole(data, rows), ""]
    write("dng_frozen", "INR2JLS on a frozen encoder, and its upper bounds", [*lines, NOTES])


def _whole(data: str, rows: list[dict[str, Any]]) -> list[str]:
    """Minutes from fits to accuracy, of the row that learned from most steps of the head."""
    stages = {"reading and drawing": "drawing", "the head": "head", "judging": "judging"}
    full = [r for r in rows if r["data"] == data and {*stages.values()} <= r.keys()]
    if not full:
        return []
    longest = max(full, key=lambda r: (r["steps"][1], r["learned"]))
    alike = ("arm", "steps", "learned", "judged", "copies", "mixup", "dropout")
    found = [r for r in full if all(r[name] == longest[name] for name in alike)]
    fits = (longest["learned"] + longest["judged"]) * FITTING[data] / 60_000
    minutes = {told: sum(r[name] for r in found) / len(found) for told, name in stages.items()}
    told = ", ".join(f"{name} {part:.1f}" for name, part in minutes.items())
    return [
        f"From fits to accuracy, frozen, {longest['learned']} networks and {longest['steps'][1]} steps of the head: "
        f"{fits + sum(minutes.values()):.1f} CPU minutes of one core (fits {fits:.1f}, {told})."
    ]


def _parts(row: dict[str, Any]) -> str:
    return " all but the walk" if row["tuned"] == "latents" else ""


def _minutes(found: list[dict[str, Any]]) -> str:
    parts = [sum(r.get(name, 0) for r in found) / len(found) for name in ("drawing", "head", "tuning")]
    told = " + ".join(f"{part:.1f}" for part in parts)
    return told if all("judging" in r for r in found) else f"{told} *"
