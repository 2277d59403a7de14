"""Tables of the paper's rows: what each is compared with, and everything that was measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from harness import kept_rows, markdown, over_seeds, write


@dataclass(frozen=True)
class Row:
    """What a table's arms are compared with: published cells that are anchors, and the least accuracy asked for, %."""

    anchor: str
    must: str = ""


ROWS = {
    "mnist, DNG only": Row("DNG 96.60 (one fit or ten: unresolved), GMN 96.06, ScaleGMN 97.5", "94"),
    "cifar10, DNG only": Row("DNG 54.00 (one fit or ten: unresolved), ScaleGMN-B 38.8, phase reader 44.2", "38"),
    "mnist, INR2JLS": Row("98.6 (ten fits an image)", "97.5"),
    "cifar10, INR2JLS": Row("73.2 (ten fits an image)", "55"),
    "mnist, order of messages": Row("none"),
    "cifar10, order of messages": Row("none"),
    "mnist, ablations": Row("none"),
    "mnist, width transfer": Row(
        "MNIST: plain 82.9, raw-weight products 97.5; Fashion: 48.0, 85.2 (all muP; the mean of wider ones)",
        "5 points below width 32 at most",
    ),
}
NOTES = """\
Accuracy on the networks of all 10,000 held-out images (width transfer: the first 1,000; drawn: the first 2,048), mean
± half of the 95 % interval over the seeds (by Student's t; none with one seed). SIRENs [2, 32, 32, c], every one from
a random initialisation of its own; CIFAR-10 is a JPEG copy. A step is 128 networks. While learning, pictures are
moved at random (not in the ablations), which is exact on the weights; the paper's augmentation is ten more fits of
each image. Minutes of one core, by the clock with other jobs beside it; machines differ, and some have no bfloat16.
*Reduced*, for want of a GPU: rows of fewer than three seeds, and all of INR2JLS (the paper takes 400,000 steps).

*DNG* begins as the inference of the network that it reads, at as many points as a state has channels (64), and goes
on from there at a tenth of the rate of the layers that read it; 768 units read the outputs, and embeddings have 512
numbers. Where *its walk stays as it began*, only the readout learns, and what it hears is nearly the network's
function at 64 fixed points, and means over neurons. So *DNG* too is near to asking the function. The *static graph*
that isn't of random initial values has the same ones and rates, but isn't inference at first: its three rounds add
their memory to what they hear. So it doesn't say what the order is worth; the arms of random initial values do, and
the tables of the order of messages. There, static graphs begin as the dynamic one does (the same initial values): one
hears messages alone and is the same function whatever both have learned, at three rounds over all layers for one
walk; the other also hears a learned share of what a unit was before, none at first. Learned from the first 20,000
networks, judged on the first 5,000 (CIFAR-10: 15,000 and 3,000); minutes there are CPU time. The two that are one
function differ by rounding. Arms of random initial values (and the ablations that don't say
otherwise) have weights relative to their block's, norms, readouts of 128 units and embeddings of 256; they learn at
one rate. Signs of neurons are canonical, unless an arm says otherwise; in the ablations free, but for those that
begin as inference and the one as large as they. Arms are compared at equal steps: the long runs of DNG have no rivals
of as many (*rendered* is ahead with fewer). The flat perceptron learned little at the rate and steps of the others,
and was not tuned. Wide networks that were fitted by maximal update parametrisation have matrices' rates of 3e-3 · 32
/ fan-in (512: the first 200 images). *With probes* the network's function is asked at learned points, a square grid
at first, and every hidden and output node hears its own answers there: not the weights alone, and near to *rendered,
then classified*. INR2JLS takes steps to draw, to classify with the encoder frozen (*accuracy*) and to fine-tune, the
last at a quarter of the rate unless it is as long as the others together; the rendered rival takes them all to
classify, knows one view, and its whole size is given, of the others the encoder's alone. The shuffled order is one
order for all seeds. The arm of random Fourier features differs in more than φ: weights are not relative, and messages
are not rooted."""


def publish() -> None:
    """Write the table of everything that was measured."""
    lines = []
    for row, about in ROWS.items():
        arms: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for r in kept_rows("dng_paper"):
            if r["row"] == row:
                arms.setdefault((r["arm"], " + ".join(map(str, r["steps"]))), []).append(r)
        if not arms:
            continue
        asked = f"; must {about.must}" if about.must else ""
        lines += [f"## {row}", "", f"Published: {about.anchor}{asked}. Ours, self-fitted INRs, one fit an image.", ""]
        cells = [[arm, steps, str(len(found)), over_seeds([100 * r["accuracy"] for r in found], 2),
                  over_seeds([100 * r["fine-tuned"] for r in found if "fine-tuned" in r], 2),
                  over_seeds([r["drawn, dB"] for r in found if "drawn, dB" in r], 2),
                  f"{found[0]['parameters'] / 1e3:.0f} k", f"{statistics.mean(r['seconds'] for r in found) / 60:.1f}"]
                 for (arm, steps), found in arms.items()]  # fmt: skip
        head = ["arm", "steps", "seeds", "accuracy, %", "fine-tuned, %", "drawn, dB", "encoder", "minutes"]
        lines += [*markdown(head, cells), ""]
    write("dng_paper", "The paper's rows, on self-fitted networks", [*lines, NOTES])
