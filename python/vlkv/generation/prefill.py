"""A prompt's first pass: its pictures and tokens through the decoder in chunks, then its cache cut to the budget."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from vlkv.backend.base import Backend, Floats
from vlkv.backend.cache import Cache
from vlkv.generation.result import Result, Seconds
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.inputs.preprocess import preprocess
from vlkv.inputs.prompt import Prompt
from vlkv.policies.compress import compress, split_budget
from vlkv.policies.decode_eviction import Eviction, evicting, room_for
from vlkv.policies.observe import Observer, observed_rows
from vlkv.policies.policy import Policy
from vlkv.storage.manifest import BYTES, Manifest

CHUNK = 1024

Progress = Callable[[int, int], None]
T = TypeVar("T")
Parts = Generator[int, None, T]
"""Work part by part, with the prompt tokens done after each."""


@dataclass(frozen=True)
class Job:
    """A prompt and how its cache is to be kept. `room` is how many new tokens it takes at the most.

    `images` are pictures, or their pixel values `[N,3,height,width]`; `scores` asks for the scores in the result.
    """

    prompt: Prompt
    images: Sequence[Image] | Floats
    policy: Policy
    budget: float
    room: int
    scores: bool = False


@dataclass(frozen=True)
class Prefilled:
    """A prompt that is ready to be answered.

    Fields:
        cache: what is kept of it, with room for the answer.
        logits: `[V]` of its last token.
        result: all but the answer.
        eviction: what decoding evicts; None for nothing.
    """

    cache: Cache
    logits: Floats
    result: Result
    eviction: Eviction | None


def chunk_bounds(length: int, chunk: int = CHUNK, begin: int = 0) -> list[tuple[int, int]]:
    """Equal parts of at most `chunk` tokens of those from `begin` to `length`."""
    parts = -(-(length - begin) // chunk)
    edges = [begin + (length - begin) * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def prefill(
    job: Job,
    backend: Backend,
    embedding: TokenEmbedding,
    manifest: Manifest,
    progress: Progress | None = None,
    chunk: int = CHUNK,
) -> Prefilled:
    """Runs one prompt to its end; `progress` is told the tokens done and in all. See `prefilling`."""
    told = None if progress is None else partial(_tell, progress, len(job.prompt.token_ids))
    return finish(prefilling(job, backend, embedding, manifest, chunk), told)


def prefilling(
    job: Job,
    backend: Backend,
    embedding: TokenEmbedding,
    manifest: Manifest,
    chunk: int = CHUNK,
    slot: Cache | None = None,
) -> Parts[Prefilled]:
    """Runs one prompt part by part: a picture, or a chunk of tokens, between one `next` and another.

    Closing the generator lets all go that it holds.

    Args:
        job: the prompt and its policy.
        backend: the graphs.
        embedding: the token embeddings.
        manifest: the model's facts.
        chunk: most tokens of a call.
        slot: where the cache is to end (B = 1), for a layer's kept tokens and the answer; None makes arrays of that
            size.
    """
    length, policy = len(job.prompt.token_ids), job.policy
    result = new_result(job, manifest)
    embeds = yield from _embedding(job.prompt, job.images, backend, embedding, manifest, result.seconds)
    whole = policy.keeps_all
    rows = observed_rows(policy, length, job.prompt.last_image)
    observer = Observer(manifest.text, policy, length, rows, backend.threads)
    room = job.room if whole else 0
    cache = slot if whole and slot else Cache.empty(manifest.text, length + room, backend.store)
    logits = yield from _reading(embeds, 0, cache, observer, backend, result, chunk)
    cache, eviction = cut(job, cache, observer, backend, result, slot=slot)
    return Prefilled(cache, logits, result, eviction)


def finish(parts: Parts[T], told: Callable[[int], None] | None = None) -> T:
    """Runs all parts; `told` gets the tokens done after each."""
    while True:
        try:
            done = next(parts)
        except StopIteration as end:
            found: T = end.value
            return found
        if told is not None and done:
            told(done)


def _tell(progress: Progress, length: int, done: int) -> None:
    progress(done, length)


def new_result(job: Job, manifest: Manifest) -> Result:
    """What is known of a result before anything has run."""
    length, text = len(job.prompt.token_ids), manifest.text
    slot = text.layers * text.kv_heads * text.head_dim * 2 * BYTES[manifest.cache_dtype]
    return Result(
        prompt_tokens=length,
        image_tokens=len(job.prompt.image_positions),
        policy=job.policy.name,
        budget=job.budget,
        sparsity=[0.0] * text.layers,
        kept_tokens=[length] * text.layers,
        cache_bytes_full=slot * (length + job.room),
    )


def embed(
    prompt: Prompt,
    images: Sequence[Image] | Floats,
    backend: Backend,
    embedding: TokenEmbedding,
    manifest: Manifest,
) -> Floats:
    """Embeddings `[S, hidden]` of the prompt, image features in the places of image tokens."""
    return finish(_embedding(prompt, images, backend, embedding, manifest, Seconds()))


def _embedding(
    prompt: Prompt,
    images: Sequence[Image] | Floats,
    backend: Backend,
    embedding: TokenEmbedding,
    manifest: Manifest,
    spent: Seconds,
) -> Parts[Floats]:
    """The same, a picture a part."""
    start = perf_counter()
    embeds = embedding.rows(prompt.token_ids)
    if len(images):
        pixels = images if isinstance(images, np.ndarray) else preprocess(images, manifest.image)
        features = []
        for number in range(len(pixels)):
            features.append(backend.vision(pixels[number : number + 1]))
            spent.vision += perf_counter() - start
            yield 0
            start = perf_counter()
        embeds[prompt.image_positions] = np.concatenate(features).reshape(-1, embeds.shape[1])
    spent.vision += perf_counter() - start
    return embeds


def read(
    embeds: Floats,
    begin: int,
    cache: Cache,
    observer: Observer,
    backend: Backend,
    result: Result,
    progress: Progress | None = None,
    chunk: int = CHUNK,
) -> Floats:
    """Runs the rows of `embeds` `[S, hidden]` from `begin` on, behind a cache that holds those before.

    The observer gets those of its rows that are run. Returns logits `[V]` of the last token.
    """
    told = None if progress is None else partial(_tell, progress, len(embeds))
    return finish(_reading(embeds, begin, cache, observer, backend, result, chunk), told)


def _reading(
    embeds: Floats,
    begin: int,
    cache: Cache,
    observer: Observer,
    backend: Backend,
    result: Result,
    chunk: int,
) -> Parts[Floats]:
    """The same, a chunk a part."""
    length, rows, spent = len(embeds), observer.rows, result.seconds
    for first, last in chunk_bounds(length, min(chunk, backend.chunk or chunk), begin):
        start = perf_counter()
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
    ends: Floats = logits[0]
    return ends


def cut(
    job: Job,
    cache: Cache,
    observer: Observer,
    backend: Backend,
    result: Result,
    keep_source: bool = False,
    slot: Cache | None = None,
) -> tuple[Cache, Eviction | None]:
    """Cuts a whole prompt's cache to the job's budget; what is kept, and what decoding will evict.

    The given cache is emptied, unless `keep_source`. Without anything to evict it is returned as it is. With a `slot`
    the tokens go there, and count the part of it that they and the answer may fill.
    """
    policy, length, start = job.policy, result.prompt_tokens, perf_counter()
    eviction, room = None, room_for(policy, job.budget, length, job.room)
    if not policy.keeps_all or keep_source:
        rows = len(observer.rows)
        ceiling = None if slot is None else [slot.capacity(n) - room for n in range(len(slot.keys))]
        counts = split_budget(policy, observer.sparsity, length, job.budget, rows, ceiling)
        cache, kept = compress(policy, cache, observer, counts, room, backend, keep_source, slot)
        scores = observer.scores
        eviction = evicting(policy, job.budget, length, kept, scores, room, backend.threads)
        result.sparsity = observer.sparsity.tolist()
        result.kept_tokens = counts.tolist()
        result.positions = None if policy.keeps_all else kept
        result.seconds.compress += perf_counter() - start
    if job.scores:
        result.scores = [score[0] for score in observer.scores]
    result.cache_bytes = cache.bytes
    if slot is not None:
        array = slot.keys[0]
        token = 2 * array.shape[1] * array.shape[3] * array.itemsize
        result.cache_bytes = token * sum(kept + room for kept in result.kept_tokens)
    return cache, eviction
