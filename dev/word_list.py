"""Make the word list that text encoders are calibrated with: `python dev/word_list.py` counts the books' words.

How often English uses each word is all that synthetic calibration takes from real text.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from dnge_compress.signals.vocabulary import WORDS
from dnge_compress.zoo.corpora import book_texts
from dnge_compress.zoo.data_root import DataRoot

_TOKEN = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|[.,;:!?\"]|\d+")
SIZE = 8000


def main() -> None:
    """Write the most frequent words and marks of the train books with their counts per million."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data sets (else DNGE_DATA, ../shared/data)")
    parser.add_argument("--out", type=Path, default=WORDS)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for text in book_texts("train", DataRoot.find(options.data)):
        counts.update(_TOKEN.findall(text))
    total = sum(counts.values())
    lines = [f"{word}\t{1e6 * n / total:.1f}" for word, n in counts.most_common(SIZE)]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
