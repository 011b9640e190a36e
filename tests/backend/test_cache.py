"""The compressed cache really is small, and decoding writes it in place."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vlkv import Question
from vlkv.backend.cache import HUGE, MAPPED, Cache, HostStore, join
from vlkv.generation.prefill import prefill
from vlkv.generation.sequence import prepare as prepare_sequence

PROMPT = " ".join(f"w{number % 20}" for number in range(60))
ROOM = 52

both = pytest.mark.parametrize("operators", ["native", "functions"])


def prepare(engine, pictures, **fields):
    return prepare_sequence(engine.model, Question(PROMPT, pictures, **{"max_new_tokens": ROOM} | fields))


def prefilled(engine, sequence):
    prefill(engine.model, sequence)
    return sequence.give_cache(), sequence.logits, sequence.result


def arrays(cache):
    return [*cache.keys, *cache.values]


def base(array):
    """Returns the array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def spread(cache):
    """Returns the start and the size of each array."""
    return [(array.ctypes.data, array.nbytes) for array in arrays(cache)]


@both
@pytest.mark.parametrize("budget", [0.01, 0.1, 0.5, 1.0])
def test_only_what_is_kept_is_held(engine_of, pictures, operators, budget):
    engine = engine_of("mistral", operators)
    cache, _, result = prefilled(engine, prepare(engine, pictures, budget=budget))
    text = engine.manifest.text
    assert sum(result.kept_tokens) == max(text.layers, round(budget * text.layers * result.prompt_tokens))
    for layer, count in enumerate(result.kept_tokens):
        for array in (cache.keys[layer], cache.values[layer]):
            assert array.shape == (1, text.kv_heads, count + ROOM, text.head_dim)
            # it is no view of a larger array
            assert base(array).nbytes == array.nbytes
            assert array.flags.c_contiguous
        assert cache.length[layer].tolist() == [count]
        assert cache.capacity(layer) == count + ROOM
    assert result.cache_bytes == cache.bytes == sum(array.nbytes for array in arrays(cache))
    memory = sorted(spread(cache))
    assert all(start + size <= after for (start, size), (after, _) in pairwise(memory))


@both
def test_the_prompts_cache_is_freed_at_once(engine_of, pictures, operators, monkeypatch):
    made = []
    whole = Cache.empty.__func__

    def empty(cls, text, capacity, store):
        cache = whole(cls, text, capacity, store)
        made.extend((array.nbytes, weakref.ref(array)) for array in arrays(cache))
        return cache

    monkeypatch.setattr(Cache, "empty", classmethod(empty))
    engine = engine_of("mistral", operators)
    asked = prepare(engine, pictures, budget=0.1)
    gc.collect()
    gc.disable()
    try:
        _, _, result = prefilled(engine, asked)
        assert len(made) == 2 * engine.manifest.text.layers
        slots = 2 * engine.manifest.text.kv_heads * engine.manifest.text.head_dim * 4
        assert sum(size for size, _ in made) == slots * 3 * result.prompt_tokens
        # reference counts free it, without the garbage collector
        assert [ref() for _, ref in made] == [None] * len(made)
    finally:
        gc.enable()


@both
def test_a_layer_is_freed_before_the_next_is_cut(engine_of, pictures, operators, monkeypatch):
    engine = engine_of("mistral", operators)
    asked = prepare(engine, pictures, budget=0.1)
    sizes = []
    original = Cache.free

    def free(cache, layer):
        original(cache, layer)
        sizes.append(cache.bytes)

    monkeypatch.setattr(Cache, "free", free)
    _, _, result = prefilled(engine, asked)
    text = engine.manifest.text
    layer = 2 * text.kv_heads * text.head_dim * 4 * result.prompt_tokens
    assert sizes == [layer * left for left in reversed(range(text.layers))]


@both
@pytest.mark.parametrize("policy", ["full", "vl-cache"])
def test_decode_writes_the_arrays_in_place(engine_of, pictures, operators, policy):
    engine = engine_of("mistral", operators)
    cache, _, result = prefilled(engine, prepare(engine, pictures, policy=policy))
    held, memory = arrays(cache), spread(cache)
    for layer, count in enumerate(result.kept_tokens):
        # slots that no token has reached yet
        cache.keys[layer][:, :, count:] = cache.values[layer][:, :, count:] = np.nan
    steps = engine.model.backend.steps(cache)
    active = np.array([True])
    for number in range(50):
        before = [array.copy() for array in held]
        token = np.array([20 + number % 30])
        logits = steps.step(
            engine.model.embedding.rows(token), np.array([result.prompt_tokens + number]), active
        )
        assert np.isfinite(logits).all()
        assert np.shares_memory(logits, steps.logits)
        for index, (array, old) in enumerate(zip(held, before, strict=True)):
            slot = result.kept_tokens[index % len(cache.keys)] + number
            assert np.isfinite(array[:, :, slot]).all()
            assert np.isnan(old[:, :, slot]).all()
            # one slot was written, nothing else was touched
            np.testing.assert_array_equal(np.delete(array, slot, 2), np.delete(old, slot, 2))
    assert all(mine is theirs for mine, theirs in zip(arrays(cache), held, strict=True))
    assert spread(cache) == memory
    assert cache.length[:, 0].tolist() == [count + 50 for count in result.kept_tokens]


@both
def test_steps_read_what_is_written_from_outside(engine_of, pictures, operators):
    engine = engine_of("llama", operators)
    cache, _, result = prefilled(engine, prepare(engine, pictures, policy="full"))
    steps = engine.model.backend.steps(cache)
    embeds = engine.model.embedding.rows(np.array([30]))
    position = np.array([result.prompt_tokens])
    stay = np.array([False])
    first = steps.step(embeds, position, stay).copy()
    np.testing.assert_array_equal(steps.step(embeds, position, stay), first)
    cache.values[0][:, :, 0] += 1.0
    assert (steps.step(embeds, position, stay) != first).any()
    cache.values[0][:, :, 0] -= 1.0
    # slots past the length hold anything
    cache.keys[1][:, :, result.prompt_tokens + 1 :] = 1e30
    np.testing.assert_allclose(
        steps.step(embeds, position, stay), first, atol=2**-20 * float(np.abs(first).max())
    )


@both
def test_prompts_that_are_done_do_not_grow(engine_of, pictures, operators):
    engine = engine_of("llama", operators)
    parts = [prefilled(engine, prepare(engine, pictures[:n], budget=0.2))[0] for n in (1, 2)]
    cache = join(parts)
    before = cache.length.copy()
    steps = engine.model.backend.steps(cache)
    for _ in range(3):
        steps.step(
            engine.model.embedding.rows(np.array([30, 31])), np.array([80, 90]), np.array([True, False])
        )
    np.testing.assert_array_equal(cache.length - before, [[3, 0]] * 3)


def test_join_is_sized_by_the_longest_and_frees_the_parts(engine_of, pictures):
    engine = engine_of("llama")
    text = engine.manifest.text
    asked = [
        prepare(engine, pictures[:n], budget=budget, max_new_tokens=room)
        for n, budget, room in ((0, 0.5, 3), (1, 0.1, 9), (2, 1.0, 5))
    ]
    parts = [prefilled(engine, one)[0] for one in asked]
    lengths = np.concatenate([part.length for part in parts], axis=1)
    slots = [max(part.capacity(layer) for part in parts) for layer in range(text.layers)]
    rooms = np.array([one.max_new_tokens for one in asked])
    assert slots == (lengths + rooms).max(axis=1).tolist()
    assert len(set(lengths[0].tolist())) == 3
    copies = [[array.copy() for array in arrays(part)] for part in parts]
    refs = [weakref.ref(array) for part in parts for array in arrays(part)]
    cache = join(parts)
    assert [ref() for ref in refs] == [None] * len(refs)
    assert sum(part.bytes for part in parts) == 0
    np.testing.assert_array_equal(cache.length, lengths)
    for index, array in enumerate(arrays(cache)):
        layer = index % text.layers
        assert array.shape == (3, text.kv_heads, slots[layer], text.head_dim)
        for row, length in enumerate(lengths[layer]):
            np.testing.assert_array_equal(array[row, :, :length], copies[row][index][0, :, :length])


def test_join_of_one_is_that_one(engine_of):
    part = Cache.empty(engine_of("llama").manifest.text, 4)
    assert join([part]) is part


def test_like_and_free():
    cache = Cache(
        [np.ones((1, 2, 5, 4), np.float32)], [np.ones((1, 2, 5, 4), np.float32)], np.full((1, 1), 5)
    )
    assert (cache.batch, cache.bytes, cache.capacity(0)) == (1, 320, 5)
    other = cache.like([7], 3)
    assert other.keys[0].shape == other.values[0].shape == (3, 2, 7, 4)
    assert other.length.tolist() == [[0, 0, 0]]
    cache.free(0)
    assert (cache.bytes, cache.capacity(0)) == (0, 0)


def test_answers_hold_no_cache(engine_of, pictures, monkeypatch):
    made = []
    original = Cache.like

    def like(cache, *arguments):
        other = original(cache, *arguments)
        made.extend(weakref.ref(array) for array in arrays(other))
        return other

    monkeypatch.setattr(Cache, "like", like)
    result = engine_of("llama").generate(PROMPT, pictures, budget=0.1, max_new_tokens=3)
    assert made
    assert [ref() for ref in made] == [None] * len(made)
    assert result.positions is not None


def test_bytes_in_a_batch_are_those_of_the_joined_arrays(engine_of, pictures, monkeypatch):
    engine = engine_of("mistral")
    held = []
    backend = engine.model.backend
    monkeypatch.setattr(
        backend, "steps", lambda cache, steps=backend.steps: (held.append(cache.bytes), steps(cache))[1]
    )
    questions = [
        Question("what", (), "vl-cache", 0.5, 3),
        Question(PROMPT, pictures, "vl-cache", 0.1, 9),
        Question(PROMPT, pictures[:1], "full", None, 5),
    ]
    results = engine.generate_batch(questions)
    text = engine.manifest.text
    rooms = (3, 9, 5)
    slots = sum(
        max(r.kept_tokens[layer] + room for r, room in zip(results, rooms, strict=True))
        for layer in range(text.layers)
    )
    assert held[0] == 3 * slots * 2 * text.kv_heads * text.head_dim * 4
    assert held[1:] == [held[0] // 3 * rows for rows in (2, 1)], (
        "rows of answers that ended are computed no more"
    )
    assert [result.cache_bytes * 3 for result in results] == [held[0]] * 3


def test_overwrite_moves_the_newest_token_of_each_head(rng):
    shape = (3, 2, 6, 4)
    cache = Cache(
        [rng.normal(size=shape).astype(np.float32) for _ in range(2)],
        [rng.normal(size=shape).astype(np.float32) for _ in range(2)],
        np.array([[4, 6, 0], [5, 2, 1]]),
    )
    old, held = [array.copy() for array in arrays(cache)], arrays(cache)
    # a slot per head, the same slot for both, the newest slot itself, none
    slots = np.array([[[1, 0], [5, 5], [-1, -1]], [[-1, -1], [0, 1], [0, 0]]])
    for _ in range(2):
        cache.overwrite(np.full_like(slots, -1))
    cache.overwrite(slots)
    assert cache.length.tolist() == [[3, 5, 0], [5, 1, 0]]
    last = [[3, 5, None], [None, 1, 0]]
    for index, (array, before) in enumerate(zip(arrays(cache), old, strict=True)):
        assert array is held[index]
        layer, want = index % 2, before.copy()
        for b, h in np.ndindex(3, 2):
            if last[layer][b] is not None:
                want[b, h, slots[layer, b, h]] = before[b, h, last[layer][b]]
        np.testing.assert_array_equal(array, want)


@pytest.fixture
def half_full(rng):
    return Cache(
        [rng.normal(size=(1, 2, 5, 4)).astype(np.float32)],
        [rng.normal(size=(1, 2, 5, 4)).astype(np.float32)],
        np.array([[3]]),
    )


def test_grow_keeps_the_tokens(half_full):
    old = [array.copy() for array in arrays(half_full)]
    half_full.grow(7)
    assert (half_full.capacity(0), half_full.length.tolist()) == (10, [[3]])
    for array, before in zip(arrays(half_full), old, strict=True):
        np.testing.assert_array_equal(array[:, :, :3], before[:, :, :3])


def test_a_copy_shares_nothing(half_full):
    old = [array.copy() for array in arrays(half_full)]
    other = half_full.copy(2)
    assert (other.capacity(0), other.length.tolist()) == (5, [[3]])
    for array, before in zip(arrays(other), old, strict=True):
        np.testing.assert_array_equal(array[:, :, :3], before[:, :, :3])
        array[:] = 0
    other.length[:] = 0
    assert half_full.length.tolist() == [[3]]
    for array, before in zip(arrays(half_full), old, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("size", [MAPPED, HUGE])
def test_the_memory_of_arrays_returns_when_they_go(size):
    def resident():
        found = Path("/proc/self/statm").read_text().split()
        return (int(found[1]) - int(found[2])) * 4096  # what no file lies behind

    store, shape, count = HostStore(), (1, 4, size // 4 // 4 // 64, 64), 8
    for _ in range(2):  # the C library gives the first back, and keeps the second
        held, between = [], []
        for _ in range(count):
            held.append(store.empty(shape))
            assert not held[-1].any()
            held[-1][...] = 1
            between.append(bytearray(60_000))
        whole = resident()
        held.clear()
        gc.collect()
        assert whole - resident() > (count - 1) * size


def test_memory_that_there_is_not():
    with pytest.raises(MemoryError, match=f"{1 << 52} bytes"):
        HostStore().empty((1, 1, 1 << 50, 1))
