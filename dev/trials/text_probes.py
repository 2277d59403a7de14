"""Which text probes a masked language model best? Sampled word trigrams of the books against topical tokens.

PYTHONPATH=. python dev/trials/text_probes.py
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch

sys.path.insert(0, str(Path(__file__).parent))
from vision_probes import judge  # noqa: E402

from dnge_compress.pretrain.batches import example_batches
from dnge_compress.pretrain.corpora import VOCABULARY, _tokenizer
from dnge_compress.pretrain.zoo import load
from dnge_compress.probe import ProbeSettings, synthesize
from dnge_compress.shelf import Shelf

TOKENS = 8192


def words_of(texts):
    return [w for x in texts for w in re.findall(r"[A-Za-z]+(?:'[a-z]+)?|[.,;:!?\"]|\d+|\n\n", x)]


class NGram:
    def __init__(self, words, order):
        self.order = order
        self.next = defaultdict(list)
        for i in range(len(words) - order):
            self.next[tuple(words[i : i + order])].append(words[i + order])
        self.words = words

    def write(self, count, rng):
        out = list(self.words[: self.order])
        while len(out) < count:
            options = self.next.get(tuple(out[-self.order :]))
            out.append(options[rng.integers(len(options))] if options else self.words[rng.integers(len(self.words))])
        return re.sub(r" (?=[.,;:!?\n])", "", " ".join(out))


def main() -> None:
    shelf = Shelf.find(cache="zoo/cache")
    rng = np.random.default_rng(0)
    books = parquet.read_table(shelf.file("books_train.parquet"))["text"].to_pylist()
    words = words_of(books[:100:3])
    texts = {f"{n}-gram": NGram(words, n - 1).write(60_000, rng) for n in (2, 3)}
    texts["1-gram"] = re.sub(r" (?=[.,;:!?\n])", "", " ".join(words[i] for i in rng.integers(len(words), size=60_000)))
    print(texts["3-gram"][:600])
    totals = {}
    for folder in sorted(Path("zoo").glob("bert-*")):
        if "@" in folder.name or folder.name[-3:] not in ("006", "041", "062", "069", "013", "104"):
            continue
        model, b = load(folder, shelf=shelf)
        judged = example_batches(b, "held-out", count=1, batch_size=64, seed=303, shelf=shelf)[0].inputs
        real = [
            x.inputs
            for x in example_batches(b, "train", count=TOKENS // b.length // 32, batch_size=32, seed=101, shelf=shelf)
        ]
        kinds = {"writer": synthesize(model, ProbeSettings(tokens=TOKENS)), "real, 15 % masked": real}
        uniform = torch.randint(
            VOCABULARY[b.data], (TOKENS // b.length, b.length), generator=torch.Generator().manual_seed(0)
        )
        kinds["uniform"] = [{"input_ids": p} for p in uniform.split(32)]
        for name, text in texts.items():
            ids = (
                list(text.encode())
                if b.data == "books-bytes"
                else _tokenizer(VOCABULARY[b.data], shelf).encode(text).ids
            )
            ids = torch.tensor(ids[: TOKENS // b.length * b.length]).view(-1, b.length)
            kinds[name] = [{"input_ids": p} for p in ids.split(32)]
        for k, batches in kinds.items():
            found = judge(model, batches, judged)
            totals.setdefault((b.data, k), []).append(found)
    for key, found in sorted(totals.items()):
        print(*key, [round(float(x), 2) for x in torch.stack(found).mean(0)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
