"""The table of INR2JLS on a frozen encoder: everything that was measured."""

from __future__ import annotations

from typing import Any

from harness import kept_rows, markdown, over_seeds, write

ANCHORS = {
    "mnist": "published 98.6 (45,000 images, eleven fits each, 400,000 + 200,000 steps)",
    "cifar10": "published 73.2 (45,000 images, eleven fits each, 400,000 + 200,000 steps)",
}
OFFICIAL = [0.2, 0.5]  # dropout
HEAD = ("arm", "networks", "steps", "seeds", "drawn, dB", "frozen, %", "tuned, %", "draw + head + tune, CPU min")
NOTES = """Self-fitted SIRENs [2, 32, 32, c], one fit an image, from random initialisations; accuracy on networks of
held-out images, mean ± half of the 95 % interval over seeds (Student's t;
none with one seed). Networks are the first of their split, far fewer than in the table of the paper's rows,
for want of machine time: arms are comparable with each other, not with that table. All arms have
one head (three strided convolutions of 256, dropout of .2 and before the last layer .5 unless said otherwise,
a perceptron; AdamW with weight decay .1, a warm-up of a tenth of the steps), as many steps of it (networks ×
two of the six views, drawn for each network) and the same copies of each network (*networks*: learned from ×
copies / judged): as it is, and moved at random, exactly, on the weights. Drawn: the first 1,000. CPU minutes of one core without bfloat16, reading the
networks included. CIFAR-10 is a JPEG copy.

*Rendered* knows the function at every pixel (or at as many points as the walk has channels) and has no
encoder: its pixels are the latents. INR2JLS on a frozen encoder can't know more than its own renderings show,
but the head learns faster from latents that have learned to draw than from pixels: after so few steps they
are ahead of this bound. The arm of four points a cell was not run without the skip, so points and skip aren't
told apart. Where the walk stays as it began, it is the network's inference at the points, message by message,
so the skip hands those answers to the cells: near to *rendered at as many points*, and what is learned lies
in latents and head. A static graph whose rounds hear messages alone is the same function there, exactly; only
walks that learn can tell the two apart. Random initial values: message passing that never learned, of the
same size, with the same skip."""


def publish() -> None:
    """Write the table of everything that was measured."""
    rows, lines = kept_rows("dng_frozen"), []
    for data, anchor in ANCHORS.items():
        arms: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for r in (r for r in rows if r["data"] == data):
            head = f"{r['steps'][0] if 'drawing' in r else '–'} / {r['steps'][1]} / {r['steps'][2] or '–'}"
            mixed = f", mixup {r['mixup']}" if r["mixup"] else ""
            mixed += "" if r["dropout"] == OFFICIAL else f", dropout {r['dropout'][0]} and {r['dropout'][1]}"
            arms.setdefault((r["arm"] + mixed, f"{r['learned']} × {r['copies']} / {r['judged']}", head), []).append(r)
        if not arms:
            continue
        cells = [[*known, str(len(found)), over_seeds([r["dB"] for r in found if "dB" in r], 2),
                  over_seeds([100 * r["accuracy"] for r in found], 2),
                  over_seeds([100 * r["fine-tuned"] for r in found if "fine-tuned" in r], 2), _minutes(found)]
                 for known, found in arms.items()]  # fmt: skip
        lines += [f"## {data}", "", f"Anchor: {anchor}.", "", *markdown(HEAD, cells), ""]
    write("dng_frozen", "INR2JLS on a frozen encoder, and its upper bounds", [*lines, NOTES])


def _minutes(found: list[dict[str, Any]]) -> str:
    parts = [sum(r.get(name, 0) for r in found) / len(found) for name in ("drawing", "head", "tuning")]
    return " + ".join(f"{part:.1f}" for part in parts)
