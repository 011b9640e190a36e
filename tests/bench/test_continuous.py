"""Times of a batch whose prompts begin and end at different iterations, against a simulation of the pipeline."""

from __future__ import annotations

import importlib.util

import pytest

from vlkv.bench.environments import peer_file

spec = importlib.util.spec_from_file_location("continuous", peer_file("continuous.py"))
continuous = importlib.util.module_from_spec(spec)
spec.loader.exec_module(continuous)


def simulated(begins, new_tokens, seconds):
    """Returns durations and sizes as the pipeline reports them, and the iteration at which the last prompt begins."""
    durations, sizes = [], []
    for iteration, length in enumerate(seconds):
        size = sum(begin <= iteration < begin + new_tokens for begin in begins)
        sizes.append(size)
        if iteration:
            durations += [length / size] * size
    return durations, sizes


@pytest.mark.parametrize(
    ("begins", "new_tokens"), [((0, 1, 2), 5), ((0, 2, 4, 6), 3), ((0, 0), 4), ((0, 1), 2)]
)
def test_steps_follow_the_last_prompts_first_token(begins, new_tokens):
    seconds = [1.0 + 0.25 * number for number in range(max(begins) + new_tokens)]
    durations, sizes = simulated(begins, new_tokens, seconds)
    batch, last = len(begins), max(begins)
    waited, steps = continuous.batched(durations, sizes, batch, new_tokens)
    assert waited == pytest.approx(sum(seconds[1 : last + 1]))
    assert len(steps) == new_tokens - 1
    for step, size, length in zip(steps, sizes[last + 1 :], seconds[last + 1 :], strict=True):
        assert batch / step == pytest.approx(size / length)
