"""Where chunks end: for every size of chunks, and with any reusable beginning, the same rows have the same company."""

from __future__ import annotations

import numpy as np
import pytest

from vlkv.backend.cache import Cache
from vlkv.generation.chunks import BLOCK, GRAIN, LEAST, chunk_bounds, reusable, steady

ALONE = 1


def alone(bounds):
    """The rows that can be left over from attention's blocks."""
    return {end - 1 for begin, end in bounds if (end - begin) % BLOCK == ALONE}


def prompts(rng, count=400):
    for _ in range(count):
        length = int(rng.integers(1, 700))
        yield length, int(rng.choice([0, rng.integers(length), max(0, length - 32)]))


def test_the_same_rows_are_alone_in_chunks_of_every_size(rng):
    found = 0
    for length, origin in prompts(rng):
        every = [chunk_bounds(length, int(chunk), 0, origin) for chunk in rng.integers(GRAIN, 1500, 6)]
        for bounds in every:
            assert [0, length] == [bounds[0][0], bounds[-1][1]]
            assert all(end - begin >= min(GRAIN, length) for begin, end in bounds)
            assert all(begin <= origin or (begin - origin) % GRAIN == 0 for begin, _ in bounds)
        if steady(length, origin):
            found += 1
            assert len({frozenset(alone(bounds)) for bounds in every}) == 1, (length, origin)
            assert alone(every[0]) <= {length - 1}
    assert found > 250


def test_a_long_prompt_is_always_steady(rng):
    for length in range(400, 440):
        for origin in range(320, 380):
            assert steady(length, origin)
            assert reusable(length, origin, origin) > origin - 2 * GRAIN


def test_what_is_reused_changes_nobodys_company(rng):
    used = 0
    for length, origin in prompts(rng):
        most = int(rng.integers(length + 1))
        tokens = reusable(length, origin, most)
        assert 0 <= tokens <= max(0, most)
        if not tokens:
            continue
        used += 1
        whole = alone(chunk_bounds(length, 256, 0, origin))
        for chunk in rng.integers(GRAIN, 1500, 4):
            bounds = chunk_bounds(length, int(chunk), tokens, origin)
            assert alone(bounds) == whole, (length, origin, tokens)
            assert all(end - begin >= LEAST for begin, end in bounds)
            assert all(begin <= origin or (begin - origin) % GRAIN == 0 for begin, _ in bounds[1:])
    assert used > 100


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_rows_have_the_same_bits_whatever_the_chunks(engine_of, rng, weights):
    """The real decoder: keys and values of all rows and the logits, with and without a reused beginning."""
    engine = engine_of("llama-old", "native", weights)
    backend, text = engine.model.backend, engine.manifest.text

    def run(embeds, bounds, cache):
        for begin, end in bounds:
            positions = np.arange(begin, end)[np.newaxis]
            logits, _ = backend.extend(
                embeds[np.newaxis, begin:end],
                positions,
                cache,
                np.zeros((1, 0), np.int64),
                end == len(embeds),
            )
        return logits.tobytes(), [array.tobytes() for array in (*cache.keys, *cache.values)]

    for length, origin in [(257, 0), (225, 161), (300, 97), *list(prompts(rng, 60))]:
        if not steady(length, origin):
            continue
        embeds = rng.normal(size=(length, text.hidden)).astype(np.float32)
        whole = Cache.empty(text, length)
        expected = run(embeds, chunk_bounds(length, 1024, 0, origin), whole)
        chunk = int(rng.integers(GRAIN, 400))
        assert run(embeds, chunk_bounds(length, chunk, 0, origin), Cache.empty(text, length)) == expected
        tokens = reusable(length, origin, int(rng.integers(length + 1)))
        cache = Cache.empty(text, length)
        for mine, other in zip((*cache.keys, *cache.values), (*whole.keys, *whole.values), strict=True):
            mine[:, :, :tokens] = other[:, :, :tokens]
        cache.length[:] = tokens
        assert run(embeds, chunk_bounds(length, chunk, tokens, origin), cache) == expected, (length, origin)
