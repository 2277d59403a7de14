"""A model's outputs, the divergence between two of them, and a loss whose gradient tells which units matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dnge_compress.signals.draws import drawn
from dnge_compress.signals.inference import Inputs, call

AT_ONCE = 1 << 21  # numbers of class scores, of which a divergence makes some copies


def attended(batch: Inputs) -> Bool[Tensor, "N T"] | None:
    """The positions of a batch that are no padding `[N, T]`, or None if all count."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or mask.dim() != 2 or bool(mask.all()):
        return None
    return mask.bool()


def attended_outputs(output: Float[Tensor, "..."], mask: Bool[Tensor, "N T"] | None) -> Float[Tensor, "..."]:
    """The rows of a model's output that count: positions that are no padding."""
    if mask is None or output.dim() != 3 or output.shape[:2] != mask.shape:
        return output
    return output[mask.to(output.device)]


def outputs_of(model: nn.Module, batch: Inputs) -> Float[Tensor, "..."]:
    """The model's outputs at the positions of a batch that count."""
    return attended_outputs(call(model, batch), attended(batch))


def mean_divergence(
    model: nn.Module, batches: Iterable[Inputs], reference: Iterable[Tensor], logits: bool
) -> Float[Tensor, ""]:
    """Mean over batches of the divergence of a model's outputs from `reference`, in nats per label."""
    pairs = zip(batches, reference, strict=True)
    return torch.stack([divergence(outputs_of(model, batch), wanted, logits) for batch, wanted in pairs]).mean()


def are_scores(output: Float[Tensor, "..."], logits: bool) -> bool:
    """Whether outputs of a model that may have `logits` can be scores of classes on their last axis.

    A single number is none, nor are images, nor numbers that all lie between 0 and 1: probabilities, sigmoids, boxes.
    """
    if not logits or output.shape[-1] < 2 or output.dim() > 3 or not output.numel():
        return False
    least, most = output.detach().aminmax()
    return not (least >= 0 and most <= 1)


def divergence(
    output: Float[Tensor, "*rows C"], reference: Float[Tensor, "*rows C"], logits: bool
) -> Float[Tensor, ""]:
    """Damage per position in nats: KL(reference ‖ output) of class scores, or half squared error over variance."""
    if are_scores(reference, logits):
        return kl_divergences(output, reference).mean()
    output, reference = output.float(), reference.float()
    # A hidden vector counts as a Gaussian whose variance is that of the output, so that damage is in nats as well.
    return 0.5 * (output - reference).square().sum(-1).mean() / reference.var().clamp_min(1e-12)


def kl_divergences(output: Float[Tensor, "*rows C"], reference: Float[Tensor, "*rows C"]) -> Float[Tensor, " labels"]:
    """KL(reference ‖ output) of class scores at every position, in nats `[labels]`, in the order of the rows."""
    classes = reference.shape[-1]
    rows = max(1, AT_ONCE // classes)
    pairs = zip(reference.reshape(-1, classes).split(rows), output.reshape(-1, classes).split(rows), strict=True)
    return torch.cat([_kl(*pair) for pair in pairs])


def _kl(reference: Float[Tensor, "rows C"], output: Float[Tensor, "rows C"]) -> Float[Tensor, " rows"]:
    p = reference.float().log_softmax(-1)
    return (p.exp() * (p - output.float().log_softmax(-1))).sum(-1)


def next_token_nats(logits: Float[Tensor, "N T C"], labels: Int[Tensor, "N T"]) -> tuple[float, int]:
    """Cross-entropy of each next token in nats, summed over those that count (label ≥ 0), and how many those are."""
    wanted = labels[:, 1:]
    counts = wanted >= 0
    total = nnf.cross_entropy(logits[:, :-1].float()[counts], wanted[counts], reduction="sum")
    return float(total), int(counts.sum())


def label_loss(output: Float[Tensor, "*rows C"], logits: bool, generator: torch.Generator) -> Float[Tensor, ""]:
    """A sum over positions whose gradient's second moment is the Fisher information of the output."""
    output = output.float()
    if are_scores(output, logits):
        flat = output.reshape(-1, output.shape[-1])
        labels = drawn(flat.detach(), generator)[0][:, 0]  # one per position, from the model's own distribution
        return nnf.cross_entropy(flat, labels, reduction="sum")
    direction = torch.randn(output.shape, generator=generator).to(output.device)
    return (output * direction).sum() / output.detach().var().clamp_min(1e-12).sqrt()
