"""Perplexity of a causal language model on a text: `python examples/perplexity.py MODEL_DIR [TEXT_FILE]`."""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

WINDOWS_PER_BATCH = 8


def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, window: int = 256) -> float:
    """exp of the mean negative log-likelihood (nats per token) of `text`.

    The tokens are cut into non-overlapping windows of `window` tokens (the last may be shorter); in each,
    every token but the first is predicted from those before it. Log-likelihoods are taken in float32, and
    the model keeps its mode, dtype and device: call `model.eval()` first.

        >>> perplexity(model, tokenizer, Path("examples/bookworm/heldout.txt").read_text(encoding="utf-8"))
    """
    nll, predicted = 0.0, 0
    for batch in window_batches(encode(tokenizer, text), window):
        batch = batch.to(model.device)
        with torch.no_grad():
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        targets = batch[:, 1:]
        nll += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        predicted += targets.numel()
    return math.exp(nll / predicted)


def unigram_perplexity(counts: torch.Tensor, tokenizer: PreTrainedTokenizerBase, text: str, window: int = 256) -> float:
    """What `perplexity` would be, on the same tokens of `text`, for a model that knows frequencies only.

    `counts` [vocabulary] says how often each token occurs in the training text; one is added to each.
    """
    smoothed = counts.double() + 1
    log_probability = (smoothed / smoothed.sum()).log()
    targets = [batch[:, 1:].flatten() for batch in window_batches(encode(tokenizer, text), window)]
    return math.exp(-log_probability[torch.cat(targets)].mean().item())


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Token ids of `text`, int64 [tokens], without special tokens."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def window_batches(tokens: torch.Tensor, window: int) -> list[torch.Tensor]:
    """`tokens` [tokens] as batches [WINDOWS_PER_BATCH or fewer, window]; a shorter last window comes alone."""
    if window < 2 or len(tokens) < 2:
        raise ValueError(f"{len(tokens)} tokens in windows of {window}: nothing can be predicted")
    whole = len(tokens) // window
    batches = list(tokens[: whole * window].view(whole, window).split(WINDOWS_PER_BATCH)) if whole else []
    rest = tokens[whole * window :]
    if len(rest) > 1:
        batches.append(rest[None])
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("text_file", type=Path, nargs="?", help="default: MODEL_DIR/heldout.txt")
    parser.add_argument("--window", type=int, default=256, help="tokens (default %(default)s)")
    args = parser.parse_args()
    text_file = args.text_file or args.model_dir / "heldout.txt"
    if not text_file.exists():
        parser.error(f"'{text_file}' isn't there; name a text file after the model's folder")
    model = AutoModelForCausalLM.from_pretrained(args.model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model_dir)
    text = text_file.read_text(encoding="utf-8")
    print(f"{perplexity(model, tokenizer, text, args.window):.3f}")


if __name__ == "__main__":
    main()
