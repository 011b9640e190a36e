"""A prompt's first pass: its pictures and tokens through the decoder in chunks, then its cache cut to the budget."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Generator
from itertools import pairwise
from time import perf_counter
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32
from vlkv.generation.result import Seconds
from vlkv.generation.sequence import Sequence
from vlkv.inputs.layouts import pack
from vlkv.inputs.preprocess import pixel_values
from vlkv.inputs.prompt import Prompt
from vlkv.model import Model
from vlkv.policies.compress import compress, split_budget
from vlkv.policies.decode_eviction import evicting, slots_for
from vlkv.policies.observe import Observer, observed_rows

PREFILL_CHUNK = 1024
"""Prompt tokens of a call: 512 to 2048 are equally fast, a long prompt in one piece is slower and takes more memory."""

GRAIN = 64
"""Chunks end at multiples of so many tokens, counted from the first observed one, and none has fewer: then their size
changes no bit. Fewer than 20 rows take other kernels, and scores are added in blocks of 64 rows."""

Progress = Callable[[int, int], None]
T = TypeVar("T")
Chunk = int | Callable[[], int]
Parts = Generator[int, None, T]
"""Work part by part, with the prompt tokens done after each."""


def chunk_end(first: int, length: int, chunk: int, origin: int = 0, most: int = 0) -> int:
    """Where a chunk ends that begins at token `first` of `length`.

    Args:
        first: its first token.
        length: of the prompt.
        chunk: how many tokens are wanted; it has up to 2 `GRAIN` - 1 more, so that none is too small.
        origin: the first observed token; ends are multiples of `GRAIN` from there.
        most: the most that the backend takes; 0 for any number.
    """
    chunk = min(chunk, most or chunk)
    grain = min(GRAIN, chunk)
    end = first + chunk
    end -= (end - origin) % grain
    if end - first < grain:
        end += grain
    if length - end < grain:
        end = length
    return min(end, first + most) if most else end


def chunk_bounds(
    length: int, chunk: int = PREFILL_CHUNK, begin: int = 0, origin: int = 0, most: int = 0
) -> list[tuple[int, int]]:
    """The chunks of the tokens from `begin` to `length`: see `chunk_end`."""
    edges = [begin]
    while edges[-1] < length:
        edges.append(chunk_end(edges[-1], length, chunk, origin, most))
    return list(pairwise(edges))


def prefill(
    model: Model, sequence: Sequence, progress: Progress | None = None, chunk: int = PREFILL_CHUNK
) -> None:
    """Runs one prompt to its end; `progress` gets the tokens done and in all. See `prefilling`."""
    length = len(sequence.prompt.token_ids)
    advance = None if progress is None else (lambda done: progress(done, length))
    finish(prefilling(model, sequence, chunk), advance)


def prefilling(
    model: Model, sequence: Sequence, chunk: Chunk = PREFILL_CHUNK, lane: Callable[[], Cache] | None = None
) -> Parts[None]:
    """Runs one prompt part by part: a picture's tile, or a chunk of tokens, between one `next` and another.

    At the end the sequence has its cache, logits and eviction, and its result is whole but for the answer. Closing
    the generator lets go of everything that it holds.

    Args:
        model: the opened engine.
        sequence: the prompt and its policy.
        chunk: tokens of a call; a function is asked before each.
        lane: gives the place where the cache is to end (B = 1), for a layer's kept tokens and the answer; it is asked
            once, when the first of them are to be written. None makes arrays of that size.
    """
    sequence.begin(model)
    length, policy, text, backend = (
        len(sequence.prompt.token_ids),
        sequence.policy,
        model.manifest.text,
        model.backend,
    )
    embeds = yield from _embedding(model, sequence.prompt, sequence.images, sequence.result.seconds)
    rows = observed_rows(policy, length, sequence.prompt.last_image)
    observer = Observer(text, policy, length, rows, backend.threads)
    new_tokens = sequence.max_new_tokens if policy.keeps_all else 0
    place = lane() if policy.keeps_all and lane else None
    cache = place or Cache.empty(text, length + new_tokens, backend.store)
    sequence.logits = yield from _running(model, embeds, 0, cache, observer, sequence.result.seconds, chunk)
    cut(model, sequence, cache, observer, lane=lane() if place is None and lane else place)


def finish(parts: Parts[T], progress: Callable[[int], None] | None = None) -> T:
    """Runs all parts; `progress` gets the tokens done after each."""
    while True:
        try:
            done = next(parts)
        except StopIteration as end:
            found: T = end.value
            return found
        if progress is not None and done:
            progress(done)


def embed(model: Model, prompt: Prompt, images: abc.Sequence[Image | Float32]) -> Float32:
    """Embeddings `[S, hidden]` of the prompt, image features in the places of image tokens."""
    return finish(_embedding(model, prompt, images, Seconds()))


def _embedding(
    model: Model, prompt: Prompt, images: abc.Sequence[Image | Float32], spent: Seconds
) -> Parts[Float32]:
    """The same, a tile a part."""
    start = perf_counter()
    embeds = model.embedding.rows(prompt.token_ids)
    begin = 0
    for number, (picture, layout) in enumerate(zip(images, prompt.pictures, strict=True), 1):
        name = f"picture {number} of {len(images)}"
        pixels = pixel_values(picture, layout, model.manifest.image, name)
        features = []
        for tile in range(len(pixels)):
            features.append(model.backend.vision(pixels[tile : tile + 1]))
            spent.vision += perf_counter() - start
            yield 0
            start = perf_counter()
        end = begin + len(layout.sources)
        embeds[prompt.image_positions[begin:end]] = pack(np.concatenate(features), layout)
        begin = end
    spent.vision += perf_counter() - start
    return embeds


def run_rows(
    model: Model, embeds: Float32, begin: int, cache: Cache, observer: Observer, spent: Seconds
) -> Float32:
    """Runs the rows of `embeds` `[S, hidden]` from `begin` on, behind a cache that holds those before.

    The observer gets those of its rows that are run. Returns logits `[V]` of the last token.
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
    """The same, a chunk a part."""
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
    """Cuts a whole prompt's cache to the sequence's budget: the sequence gets what is kept, and what decoding evicts.

    The given cache is emptied, unless `keep_source`. Without anything to evict it is the sequence's as it is. With a
    `lane` the tokens go there, and the part of it counts that they and the answer may fill.
    """
    policy, result, backend, start = sequence.policy, sequence.result, model.backend, perf_counter()
    budget, length = sequence.budget, result.prompt_tokens
    spare = slots_for(policy, budget, length, sequence.max_new_tokens)
    sequence.eviction = None
    if not policy.keeps_all or keep_source:
        rows = len(observer.rows)
        ceiling = None if lane is None else [lane.capacity(n) - spare for n in range(len(lane.keys))]
        counts = split_budget(policy, observer.sparsity, length, budget, rows, ceiling)
        cache, kept = compress(policy, cache, observer, counts, spare, backend, keep_source, lane)
        scores = observer.scores
        sequence.eviction = evicting(policy, budget, length, kept, scores, spare, backend.threads)
        result.sparsity = observer.sparsity.tolist()
        result.kept_tokens = counts.tolist()
        result.positions = None if policy.keeps_all else kept
        result.seconds.compress += perf_counter() - start
    if sequence.want_scores:
        result.scores = [score[0] for score in observer.scores]
    result.cache_bytes = cache.bytes
    if lane is not None:
        array = lane.keys[0]
        token = 2 * array.shape[1] * array.shape[3] * array.itemsize
        result.cache_bytes = token * sum(kept + spare for kept in result.kept_tokens)
    sequence.cache = cache
