"""Trains bookworm, the small example model in `examples/bookworm`, from scratch on a CPU in under an hour.

    python examples/train_bookworm.py --data ../shared/data

A run that was interrupted resumes from its work folder; one that is finished only exports and measures
again. Two sets of environment variables make it faster on Linux: MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=20000000000 (freed activations stay mapped, a tenth faster) and, where other jobs share
the cores, OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 (threads sleep at a barrier and don't spin, ten times).
"""

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from bookworm_card import write_card
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
CONTEXT = 256  # tokens
BATCH = 8  # windows a step; larger batches were no faster on two cores
PEAK_LEARNING_RATE = 2e-3
WARMUP = 0.03  # of the run
SEED = 0
HELDOUT_BYTES_PER_BOOK = 20_000


@dataclass(frozen=True)
class Budget:
    """The run ends at `steps` optimizer steps or after `minutes` of training, whichever comes first."""

    steps: int
    minutes: float

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over, 0..1; the learning rate is a function of it."""
        return min(1.0, max(step / self.steps, seconds / (60 * self.minutes)))


@dataclass
class Run:
    """What a checkpoint holds."""

    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0  # of training, over all resumptions


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    books = read_books(args.data / "books_train.parquet")
    tokenizer = prepare_tokenizer(books, args.work)
    tokens = prepare_tokens(books, tokenizer, args.work)
    run = resume(args.work / "checkpoint.pt")
    if not args.export_only:
        train(run, tokens, Budget(args.steps, args.minutes), args.work / "checkpoint.pt")
    export(run.model, tokenizer, args.out)
    heldout = heldout_excerpts(read_books(args.data / "books_valid.parquet"))
    (args.out / "heldout.txt").write_text(heldout, encoding="utf-8")
    write_card(args.out, tokens, tokens_seen=run.step * BATCH * CONTEXT, seconds=run.seconds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DNGE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("examples/bookworm"))
    parser.add_argument("--work", type=Path, default=Path("runs/bookworm"), help="checkpoints and tokens")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=55.0, help="of training, over all resumptions")
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint as it is")
    return parser.parse_args()


def read_books(path: Path) -> list[str]:
    return pq.read_table(path)["text"].to_pylist()


def prepare_tokenizer(books: list[str], work: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 4,096 entries, learnt from `books` or read from `work`."""
    path = work / "tokenizer.json"
    if not path.exists():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        bpe.train_from_iterator(
            books,
            trainers.BpeTrainer(
                vocab_size=4096,
                special_tokens=[END],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        bpe.save(str(path))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token=END, eos_token=END, model_max_length=512, clean_up_tokenization_spaces=False
    )


def prepare_tokens(books: list[str], tokenizer: PreTrainedTokenizerFast, work: Path) -> torch.Tensor:
    """All `books` as one stream of token ids, int64 [tokens], each book ended by END."""
    path = work / "tokens.npy"
    if not path.exists():
        encoded = tokenizer(books, add_special_tokens=False, verbose=False)["input_ids"]
        ended = [np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in encoded]
        np.save(path, np.concatenate(ended))
    return torch.from_numpy(np.load(path).astype(np.int64))


def resume(checkpoint: Path) -> Run:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    run = Run(model, torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True))
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.seconds = state["step"], state["seconds"]
    return run


def train(run: Run, tokens: torch.Tensor, budget: Budget, checkpoint: Path) -> None:
    """Steps `run` to the end of `budget`, logging every 20 seconds and checkpointing every minute."""
    run.model.train()
    before, start = run.seconds, time.monotonic()
    logged_at, saved_at, logged_step, losses = start, start, run.step, []
    while (progress := budget.progress(run.step, run.seconds)) < 1.0:
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        losses.append(train_step(run, windows(tokens, run.step)))
        run.step += 1
        now = time.monotonic()
        run.seconds = before + now - start
        if now - logged_at > 20:
            rate = (run.step - logged_step) * BATCH * CONTEXT / (now - logged_at)
            loss = sum(losses) / len(losses)
            print(
                f"step {run.step}  progress {progress:.3f}  loss {loss:.3f}  {rate:.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
            logged_at, logged_step, losses = now, run.step, []
        if now - saved_at > 60:
            save(run, checkpoint)
            saved_at = now
    save(run, checkpoint)


def train_step(run: Run, batch: torch.Tensor) -> float:
    """One AdamW step on `batch` [BATCH, CONTEXT + 1]; returns the loss in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = run.model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss.item()


def windows(tokens: torch.Tensor, step: int) -> torch.Tensor:
    """The batch [BATCH, CONTEXT + 1] of `step`: a shuffled pass over all windows, then another, shifted."""
    steps_per_pass = (len(tokens) - 2 * CONTEXT) // (BATCH * CONTEXT)
    generator = torch.Generator().manual_seed(SEED + step // steps_per_pass)
    shift = int(torch.randint(CONTEXT, (), generator=generator))
    order = torch.randperm(steps_per_pass * BATCH, generator=generator).view(-1, BATCH)
    starts = shift + CONTEXT * order[step % steps_per_pass]
    return tokens[starts[:, None] + torch.arange(CONTEXT + 1)]


def learning_rate(progress: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    if progress < WARMUP:
        return PEAK_LEARNING_RATE * (progress + 1e-4) / WARMUP
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def save(run: Run, checkpoint: Path) -> None:
    state = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    partial = checkpoint.with_suffix(".partial")
    torch.save(state | {"step": run.step, "seconds": run.seconds}, partial)
    partial.replace(checkpoint)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def heldout_excerpts(books: list[str]) -> str:
    """About HELDOUT_BYTES_PER_BOOK of whole paragraphs from a quarter into each book on."""
    return "\n\n".join(excerpt(book) for book in books) + "\n"


def excerpt(book: str) -> str:
    paragraphs = book[book.index("\n\n", len(book) // 4) + 2 :].split("\n\n")
    ends = np.cumsum([len(paragraph.encode()) + 2 for paragraph in paragraphs])
    return "\n\n".join(paragraphs[: int(np.searchsorted(ends, HELDOUT_BYTES_PER_BOOK)) + 1])


if __name__ == "__main__":
    main()
