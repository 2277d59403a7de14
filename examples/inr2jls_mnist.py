"""INR2JLS in minutes: fit a small network to each of some digits, learn to draw the digits from the weights alone, and
read their classes from the latents: first by a head alone, then with latents and head tuned together.

    python examples/inr2jls_mnist.py --out runs/inr2jls      # 2 to 5 minutes of two cores; writes digits.png

The encoder begins as the inference of the networks that it reads, at four points to a cell of the latents, and stays
so: it is asked once for all steps of drawing and of the head, which classify 96.2 % of unseen digits. Tuning asks it
anew, of moved digits; so brief, it leaves 96.2 %, and pays where it is long: benchmarks/dng_frozen.py. The picture has
three rows: digits that the encoder never saw, their networks rendered, and what the decoder draws from the weights.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dnge_compress.core.errors import DngeError
from dnge_compress.core.progress import printed
from dnge_compress.inr import INR2JLS, HeadConfig, InrEncoder, InrEncoderConfig, InrSet, JlsConfig, TrainSettings
from dnge_compress.inr.readings import read_all
from dnge_compress.inr.sets import about, build_set, pictures
from dnge_compress.zoo.data_root import DataRoot
from dnge_compress.zoo.images import images

SHOWN = 12  # digits in the picture
SIDE = 28
POINTS = 14**2  # four to a cell of 4 × 4 pixels
JITTER = "mnist"


def main() -> int:
    """Fit, learn, draw, classify; 0 when the picture is written, 2 on missing data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/inr2jls"))
    parser.add_argument("--count", type=int, default=5000, help="digits to learn from")
    parser.add_argument("--steps", type=int, default=400, help="of 64 networks each, to learn to draw")
    options = parser.parse_args()
    try:
        run(options.out, options.count, options.steps)
    except DngeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(out: Path, count: int, steps: int) -> None:
    """The whole example; leaves the sets, so that a second run fits nothing again."""
    torch.manual_seed(0)
    data_root = DataRoot.find()
    fitted = partial(build_set, data_root=data_root, jobs=2, progress=printed)
    seen = fitted(about("mnist", "train", count=count), out / "seen.safetensors")
    unseen = fitted(about("mnist", "held-out", count=1000), out / "unseen.safetensors")
    encoder = InrEncoder(InrEncoderConfig(hidden=POINTS))
    jls = INR2JLS(encoder, JlsConfig(side=SIDE, skip=True, head=HeadConfig(width=128, dropout=0.0, last_dropout=0.2)))
    encoder.requires_grad_(False)
    readings = read_all(encoder, seen, jitter=JITTER, copies=2, progress=printed)
    digits = pictures(images("mnist", "train", data_root=data_root), slice(0, count))
    jls.fit(seen, digits, learn(steps), readings=readings, progress=printed)
    jls.fit_classifier(seen, learn(2 * steps), readings=readings, progress=printed)
    frozen = jls.accuracy(unseen)
    shown = pictures(images("mnist", "held-out", data_root=data_root), slice(0, SHOWN))
    draw(jls, unseen, shown).save(out / "digits.png")
    jls.fit_classifier(seen, learn(max(1, steps // 2), learning_rate=1e-3), fine_tune=True, progress=printed)
    print(
        f"{out / 'digits.png'}; of {len(unseen)} unseen digits {frozen:.1%} are classified rightly by the head, "
        f"{jls.accuracy(unseen):.1%} with tuned latents"
    )


def learn(steps: int, learning_rate: float = 2e-3) -> TrainSettings:
    """Steps of 64 networks, their digits moved a little."""
    return TrainSettings(steps=steps, batch=64, learning_rate=learning_rate, jitter=JITTER)


def draw(jls: INR2JLS, unseen: InrSet, digits: Tensor) -> Image.Image:
    """Digits, their networks rendered, and the first of the six views that the decoder draws."""
    some = unseen.select(slice(0, len(digits)))
    with torch.no_grad():
        decoded = jls.decode(jls.encode(some.stack, some.siren))[:, 0]
    rows = [digits, some.siren.images(some.stack, SIDE), decoded]
    tiles = torch.cat([torch.cat(list(row[:, 0].clamp(-1, 1)), 1) for row in rows])
    grey = ((tiles + 1) * 127.5).round().byte().numpy()
    return Image.fromarray(grey).resize((3 * grey.shape[1], 3 * grey.shape[0]), Image.Resampling.NEAREST)


if __name__ == "__main__":
    sys.exit(main())
