"""What if the writer's words leave much of a vocabulary out, as 8,000 words of English do to 30,000 word pieces?

The zoo's BERTs have 1,024 tokens; the same is played through with a word list that covers few of them.

    PYTHONPATH=. python dev/trials/coverage.py
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from vision_probes import judge  # noqa: E402

from dnge_compress.pretrain.batches import example_batches
from dnge_compress.pretrain.corpora import VOCABULARY
from dnge_compress.pretrain.zoo import load
from dnge_compress.shelf import Shelf
from dnge_compress.vocabulary import vocabulary_of
from dnge_compress.writing import with_perplexity

TOKENS = 8192


def made(embedding, spellings, frequencies, content_from, share, pool, length, rows, g):
    """Words by frequency; a share of those from `content_from` on replaced by topical entries of `pool` (token ids)."""
    directions = torch.nn.functional.normalize(embedding[pool] - embedding[pool].mean(0), dim=1)
    words = torch.multinomial(frequencies, rows * length, replacement=True, generator=g).view(rows, length)
    centres = torch.randint(len(pool), (rows,), generator=g)
    topics = with_perplexity(directions[centres] @ directions.T, 32)
    topical = pool[torch.multinomial(topics, length, replacement=True, generator=g)]
    replaced = (torch.rand(rows, length, generator=g) < share) & (words >= content_from)
    return torch.tensor(
        [
            [t for w, r, p in zip(ws, rs, ps, strict=True) for t in ([p] if r else spellings[w])][:length]
            for ws, rs, ps in zip(words.tolist(), replaced.tolist(), topical.tolist(), strict=True)
        ]
    )


def main() -> None:
    shelf = Shelf.find(cache="zoo/cache")
    totals = {}
    for name in ("bert-013", "bert-069", "bert-076", "bert-041"):
        model, b = load(Path("zoo") / name, shelf=shelf)
        v = vocabulary_of(model)
        judged = example_batches(b, "held-out", count=1, batch_size=64, seed=303, shelf=shelf)[0].inputs
        emb = model.get_input_embeddings().weight.detach()
        size = VOCABULARY[b.data]
        everything = torch.arange(size)
        rows = TOKENS // b.length
        for known in (100, 300):
            few = replace(v, spellings=v.spellings[:known], frequencies=v.frequencies[:known])
            covered = len({t for s in few.spellings for t in s}) / size
            flat = torch.tensor(sorted({t for s in few.spellings for t in s}))
            cases = {
                "words alone": (few.spellings, few.frequencies, known, 0.0, everything),
                "words, half of the rarer from topics of covered tokens": (
                    few.spellings,
                    few.frequencies,
                    50,
                    0.5,
                    flat,
                ),
                "words, half of the rarer from topics of all tokens": (
                    few.spellings,
                    few.frequencies,
                    50,
                    0.5,
                    everything,
                ),
                "words, all of the rarer from topics of all tokens": (
                    few.spellings,
                    few.frequencies,
                    50,
                    1.0,
                    everything,
                ),
                "topics of all tokens, a third uniform": (
                    tuple((i,) for i in range(size)),
                    torch.ones(size),
                    0,
                    2 / 3,
                    everything,
                ),
            }
            for kind, (s, f, c, share, pool) in cases.items():
                ids = made(emb, s, f, c, share, pool, b.length, rows, torch.Generator().manual_seed(0))
                found = judge(model, [{"input_ids": p} for p in ids.split(32)], judged)
                totals.setdefault((b.data, known, kind), []).append(found)
            print(name, known, f"{covered:.0%} of the tokens covered", flush=True)
    for key, found in totals.items():
        print(*key, [round(float(x), 2) for x in torch.stack(found).mean(0)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
