"""Times of a batch in a pipeline of continuous batching, which decodes some prompts while it prefills others."""

from __future__ import annotations


def batched(
    durations: list[float], sizes: list[int], batch: int, new_tokens: int
) -> tuple[float, list[float]]:
    """Returns the wait for the last prompt's first token, and the steps after it.

    Args:
        durations: for each token after the first iteration, its iteration's seconds divided by its tokens.
        sizes: tokens of each iteration.
        batch: prompts of equal length, which begin in order, so that the last one ends last.
        new_tokens: tokens of each answer.

    Returns:
        The seconds from the first iteration to the last prompt's first token, and the steps after it: `batch` times
        the seconds per token, so that `batch` divided by a step is the rate at which tokens came.
    """
    each, place = [], 0
    for size in sizes[1:]:
        each.append(durations[place])
        place += size
    last = len(each) - (new_tokens - 1)
    waited = sum(share * size for share, size in zip(each[:last], sizes[1:], strict=False))
    return waited, [share * batch for share in each[last:]]
