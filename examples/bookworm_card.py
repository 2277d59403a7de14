"""The model card of bookworm: measures the model saved in a folder and writes the folder's README.md."""

from pathlib import Path

import torch
from perplexity import encode, perplexity, unigram_perplexity
from transformers import AutoModelForCausalLM, AutoTokenizer

CARD = """\
---
language: en
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, example]
---

# bookworm

A Llama-style language model of {params:,} parameters that was trained on old English books, on two shared CPU
cores, in {minutes:.0f} minutes. It exists to be compressed: it is small enough to ship with dnge_compress, and has
learnt enough for a compression to be seen in its perplexity. It is not good for anything else.

| | |
| --- | --- |
| architecture | `LlamaForCausalLM`: hidden {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} heads, \
{num_key_value_heads} key/value heads of {head_dim}, intermediate {intermediate_size}, tied embeddings |
| tokenizer | byte-level BPE, {vocab_size:,} entries, learnt from the training books |
| weights | bfloat16, {weight_bytes:,} bytes |
| training text | `books_train.parquet`: 102 books by 91 authors, {train_tokens:,} tokens |
| tokens seen | {tokens_seen:,} ({passes:.2f} passes over the training text) |
| held-out text | `heldout.txt`: an excerpt from each of ten other books by ten other authors, \
{heldout_bytes:,} bytes, {heldout_tokens:,} tokens |
| **held-out perplexity** | **{perplexity:.2f}** per token |
| unigram perplexity | {unigram:.2f} per token |

Both perplexities are over the same tokens: windows of 256 tokens that don't overlap, in each every token but
the first is predicted; the saved bfloat16 weights are loaded as float32. The unigram model is estimated on
the training tokens with add-one smoothing.

## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("examples/bookworm", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained("examples/bookworm")
prompt = tokenizer("It was a dark night, and", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40, do_sample=True, top_p=0.9)[0]))
```

`python examples/perplexity.py examples/bookworm` measures the perplexity again. Training saw contexts of 256
tokens; the configuration allows 512.

## Training

`python examples/train_bookworm.py` makes the whole folder, this card and its numbers included: AdamW with a
batch of 2,048 tokens, warm-up and a cosine to zero, no dropout, bfloat16 autocast with float32 weights and
loss. The run ends after a number of steps or minutes, so another machine gives slightly other weights.

## Data and licence

The books come from the GitHub repository `mlschmitt/classic-books-markdown`, which calls them "all titles
from the public domain"; they were published from 1637 to 1924 (where protection counts from an author's
death, a few may still be protected). The weights are under the project's MIT licence. Old prose speaks as
its time did, about women, peoples and faiths too, and so does a model trained on it: look at a sample before
you show it.
"""


def write_card(folder: Path, train_tokens: torch.Tensor, *, tokens_seen: int, seconds: float) -> None:
    """Writes `folder`/README.md; `train_tokens` [tokens] is the training text, `seconds` the training time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    heldout = (folder / "heldout.txt").read_text(encoding="utf-8")
    counts = torch.bincount(train_tokens, minlength=model.config.vocab_size)
    card = CARD.format(
        **model.config.to_dict(),
        params=model.num_parameters(),
        minutes=seconds / 60,
        weight_bytes=(folder / "model.safetensors").stat().st_size,
        train_tokens=len(train_tokens),
        tokens_seen=tokens_seen,
        passes=tokens_seen / len(train_tokens),
        heldout_bytes=len(heldout.encode()),
        heldout_tokens=len(encode(tokenizer, heldout)),
        perplexity=perplexity(model, tokenizer, heldout),
        unigram=unigram_perplexity(counts, tokenizer, heldout),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
