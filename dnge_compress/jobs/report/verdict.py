"""What a job came to, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dnge_compress.core.wording import percent, several, told_apart
from dnge_compress.jobs.report.measures import ORIGINAL, PRUNED, TRAINED, Milestone, measured, perplexity
from dnge_compress.report.plots import Curve

# Growth of the perplexity up to which a loss is called that.
WORDS = (
    (0.0, "nothing is lost on these rows"),
    (0.01, "next to nothing is lost"),
    (0.05, "a little is lost"),
    (0.2, "clearly something is lost"),
    (math.inf, "much is lost: remove less, or train longer on text of your own"),
)
LEARNED = 0.95  # of the original's perplexity: below that, training taught what the original didn't know


def verdict(milestones: Sequence[Milestone], curves: Sequence[Curve]) -> tuple[str, ...]:
    """A few sentences: what the result has lost and gained, and what training did. Empty where nothing was changed."""
    named = {m.name: m for m in milestones}
    original, pruned, trained = (named.get(name) for name in (ORIGINAL, PRUNED, TRAINED))
    result = trained or pruned
    if original is None or result is None:
        return ()
    training = _training(pruned or original, original, trained, curves) if trained else ()
    return (*_overall(original, result), *training)


def _overall(original: Milestone, result: Milestone) -> Iterator[str]:
    gained = []
    if result.params < original.params:
        gained.append(f"{percent(1 - result.params / original.params)} smaller")
    faster = next((m.change(result, original) for m in measured([original, result]) if m.name == "tokens/s"), "")
    if faster:
        gained.append(f"speed {faster}")
    before, after = perplexity(original), perplexity(result)
    if before is not None and after is not None and math.isfinite(before) and math.isfinite(after):
        growth = after / before - 1
        word = next(word for most, word in WORDS if growth <= most)
        gained.append(f"perplexity of held-out rows {before:.4g} → {after:.4g}, {word}")
    if gained:
        yield f"Against the original: {'; '.join(gained)}."


def _training(start: Milestone, original: Milestone, trained: Milestone, curves: Sequence[Curve]) -> Iterator[str]:
    points = [p for c in curves[:1] for p in c.held_out if math.isfinite(p[1])]
    if not all(loss is not None and math.isfinite(loss) for loss in (start.loss, trained.loss)):
        return
    assert start.loss is not None and trained.loss is not None
    if trained.loss == start.loss:
        found = ""
        if len(points) > 1:
            step, loss = min(points[1:], key=lambda point: point[1])
            at_best, before = told_apart(loss, points[0][1])
            found = f" (at best {at_best}, at step {step:,}; {before} before the first step)"
        what = "pruned model" if start.name == PRUNED else "model it began with"
        yield f"Training made nothing better on the held-out rows{found}, so the result is the {what}."
        return
    if start is not original and original.loss is not None and start.loss > original.loss:
        share = (start.loss - trained.loss) / (start.loss - original.loss)
        if share > 1:
            yield "Training took back all of the loss and more: the result is better than the original on these rows."
        else:
            yield f"Training took back {percent(share)} of the loss."
    known = original.loss if original.loss is not None and math.isfinite(original.loss) else -math.inf
    if trained.loss < min(start.loss, known + math.log(LEARNED)):
        yield "The rows taught it something new; what it has lost of other text, dnge compare on such text tells."
    if points:
        step, loss = min(points, key=lambda point: point[1])
        several_found = several(len(points), "evaluation")
        yield f"Kept is what training had at step {step:,}, the lowest held-out loss ({loss:.3f}) of {several_found}."
