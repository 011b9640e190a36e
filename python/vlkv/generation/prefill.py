"""Prefill: a prompt's pictures and tokens run in chunks, then its cache is compressed to the budget."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Generator
from time import perf_counter
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from vlkv.backend.cache import HOST, Cache
from vlkv.dtypes import Float32
from vlkv.generation.chunks import PREFILL_CHUNK, chunk_end, reusable, steady
from vlkv.generation.result import Seconds
from vlkv.generation.reuse import Reading
from vlkv.generation.sequence import Sequence
from vlkv.inputs.layouts import pack
from vlkv.inputs.preprocess import pixel_values
from vlkv.inputs.prompt import Prompt
from vlkv.model import Model
from vlkv.policies.compress import compress, split_budget
from vlkv.policies.decode_eviction import evicting, slots_for
from vlkv.policies.observe import Observer, observed_rows

Progress = Callable[[int, int], None]
T = TypeVar("T")
Chunk = int | Callable[[], int]
Parts = Generator[int, None, T]
"""A generator that does a part of its work at each `next` and yields the number of prompt tokens done."""


def prefill(
    model: Model, sequence: Sequence, progress: Progress | None = None, chunk: int = PREFILL_CHUNK
) -> None:
    """Runs one prompt to its end; `progress` is called with the tokens done and their total. See `prefilling`."""
    length = len(sequence.prompt.token_ids)
    advance = None if progress is None else (lambda done: progress(done, length))
    finish(prefilling(model, sequence, chunk), advance)


def prefilling(
    model: Model,
    sequence: Sequence,
    chunk: Chunk = PREFILL_CHUNK,
    lane: Callable[[], Cache] | None = None,
    reading: Reading | None = None,
) -> Parts[None]:
    """Runs one prompt part by part: each `next` runs one tile of a picture or one chunk of tokens.

    At the end the sequence has its cache, logits and eviction, and its result is complete except for the answer.
    Closing the generator releases everything that it holds.

    Args:
        model: the opened engine.
        sequence: the prompt and its policy.
        chunk: the tokens of a call; a function is called before each.
        lane: returns the cache (B = 1) that receives the kept tokens and the answer. It is called once, before the
            first of them is written. None allocates a cache of the size needed.
        reading: what earlier prompts left for this one, and where this one leaves its own; None for neither.
    """
    sequence.begin(model)
    length, policy, text, backend = (
        len(sequence.prompt.token_ids),
        sequence.policy,
        model.manifest.text,
        model.backend,
    )
    rows, spent = observed_rows(policy, length, sequence.prompt.last_image), sequence.result.seconds
    stays, origin = sequence.kept_whole, rows.start if rows else 0
    place: Cache | None = None

    def working() -> Cache:
        nonlocal place
        place = lane() if stays and lane else None
        new_tokens = sequence.max_new_tokens if stays else 0
        return place or Cache.empty(text, length + new_tokens, backend.store)

    def most(tokens: int) -> int:
        # queries of the observation window are not kept, so its rows run
        return reusable(length, origin, min(tokens, rows.start) if rows else tokens)

    known = 0 if reading is None else reading.reuse.known(reading.names, most)
    cache = None
    if reading is not None and known:
        start, cache = perf_counter(), working()
        reading.reuse.load(reading.names, known, cache)
        sequence.result.cached_tokens = known
        spent.prefill += perf_counter() - start
    embeds = yield from _embedding(model, sequence.prompt, sequence.images, spent, known, reading)
    observer = Observer(text, policy, length, rows, backend.threads)
    cache = cache or working()
    sequence.logits = yield from _running(model, embeds, known, cache, observer, spent, chunk)
    if reading is not None and steady(length, origin):
        reading.reuse.save(reading.names, cache)
    cut(model, sequence, cache, observer, lane=lane() if place is None and lane else place)


def finish(parts: Parts[T], progress: Callable[[int], None] | None = None) -> T:
    """Runs all parts; `progress` is called with the tokens done after each."""
    while True:
        try:
            done = next(parts)
        except StopIteration as end:
            found: T = end.value
            return found
        if progress is not None and done:
            progress(done)


def embed(model: Model, prompt: Prompt, images: abc.Sequence[Image | Float32]) -> Float32:
    """Embeddings `[S, hidden]` of the prompt, with image features in place of image tokens."""
    return finish(_embedding(model, prompt, images, Seconds()))


def _embedding(
    model: Model,
    prompt: Prompt,
    images: abc.Sequence[Image | Float32],
    spent: Seconds,
    since: int = 0,
    reading: Reading | None = None,
) -> Parts[Float32]:
    """`embed`, one tile per part. Image tokens of pictures that end before token `since` get no features."""
    start = perf_counter()
    embeds = model.embedding.rows(prompt.token_ids)
    begin = 0
    for number, (picture, layout) in enumerate(zip(images, prompt.pictures, strict=True), 1):
        places = prompt.image_positions[begin : begin + len(layout.sources)]
        begin += len(layout.sources)
        if places[-1] < since:
            continue
        known = None if reading is None else reading.reuse.features(reading.names.pictures[number - 1])
        if known is not None:
            embeds[places] = known
            continue
        name, graph, facts = f"picture {number} of {len(images)}", "vision", model.manifest.image
        if layout.frame is not None and model.manifest.video is not None:
            graph, facts = model.manifest.video.graph, model.manifest.video.frame
        pixels = pixel_values(picture, layout, facts, name)
        features = []
        for tile in range(len(pixels)):
            features.append(model.backend.vision(pixels[tile : tile + 1], graph))
            spent.vision += perf_counter() - start
            yield 0
            start = perf_counter()
        packed = pack(np.concatenate(features), layout)
        embeds[places] = packed
        if reading is not None:
            reading.reuse.save_features(reading.names.pictures[number - 1], packed)
    spent.vision += perf_counter() - start
    return embeds


def run_rows(
    model: Model, embeds: Float32, begin: int, cache: Cache, observer: Observer, spent: Seconds
) -> Float32:
    """Runs the rows of `embeds` `[S, hidden]` from `begin` on, behind a cache that holds the earlier rows.

    The observer receives the rows of its window that run. Returns logits `[V]` of the last token.
    """
    return finish(_running(model, embeds, begin, cache, observer, spent, PREFILL_CHUNK))


def _running(
    model: Model,
    embeds: Float32,
    begin: int,
    cache: Cache,
    observer: Observer,
    spent: Seconds,
    chunk: Chunk,
) -> Parts[Float32]:
    """`run_rows`, one chunk per part."""
    length, rows, backend = len(embeds), observer.rows, model.backend
    first, last = begin, begin
    while last < length:
        start, first = perf_counter(), last
        wanted = chunk if isinstance(chunk, int) else chunk()
        last = chunk_end(first, length, wanted, rows.start if rows else 0, backend.chunk)
        seen = np.arange(max(first, rows.start), min(last, rows.stop), dtype=np.int64)
        positions = np.arange(first, last, dtype=np.int64)[np.newaxis]
        logits, observation = backend.extend(
            embeds[np.newaxis, first:last], positions, cache, (seen - first)[np.newaxis], last == length
        )
        scored = perf_counter()
        spent.prefill += scored - start
        observer.add(observation, cache, seen)
        spent.compress += perf_counter() - scored
        yield last
    ends: Float32 = logits[0]
    return ends


def cut(
    model: Model,
    sequence: Sequence,
    cache: Cache,
    observer: Observer,
    keep_source: bool = False,
    lane: Cache | None = None,
) -> None:
    """Compresses a whole prompt's cache to the sequence's budget, and gives the sequence its cache and eviction.

    The given cache is emptied, unless `keep_source`. A policy that keeps everything takes it over as it is. With a
    `lane` the kept tokens go there, and `cache_bytes` counts the part that they and the answer may fill.
    """
    policy, result, backend, start = sequence.policy, sequence.result, model.backend, perf_counter()
    budget, length, windows = sequence.budget, result.prompt_tokens, sequence.windows
    spare = slots_for(policy, budget, length, sequence.max_new_tokens)
    sequence.eviction = None
    capacity = [length + spare] * len(windows)
    if not policy.keeps_all or keep_source or any(windows):
        rows = len(observer.rows)
        ceiling = None if lane is None else ceilings(lane, spare, length, windows)
        counts = split_budget(policy, observer.sparsity, length, budget, rows, ceiling, windows)
        capacity = [
            min(kept + spare, window) if window else kept + spare
            for kept, window in zip(counts.tolist(), windows, strict=True)
        ]
        cache, kept = compress(policy, cache, observer, counts, capacity, backend, keep_source, lane, windows)
        scores, threads = observer.scores, backend.threads
        sequence.eviction = evicting(policy, budget, length, kept, scores, capacity, threads, windows)
        result.sparsity = observer.sparsity.tolist()
        result.kept_tokens = counts.tolist()
        result.positions = None if policy.keeps_all and not any(windows) else kept
        result.seconds.compress += perf_counter() - start
    if sequence.want_scores:
        result.scores = [score[0] for score in observer.scores]
    result.cache_bytes = cache.bytes
    if lane is not None and lane.store is HOST:
        array = lane.keys[0]
        token = 2 * array.shape[1] * array.shape[3] * array.itemsize
        result.cache_bytes = token * sum(capacity)
    sequence.cache = cache


def ceilings(lane: Cache, spare: int, length: int, windows: abc.Sequence[int]) -> list[int]:
    """The most prompt tokens that each layer of a lane has slots for, `[L]`; one that holds its window holds any."""
    slots = [lane.capacity(layer) for layer in range(len(lane.keys))]
    return [
        length if window and held >= window else held - spare
        for held, window in zip(slots, windows, strict=True)
    ]
