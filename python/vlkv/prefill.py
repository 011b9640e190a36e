"""A prompt's first pass: its pictures and tokens through the decoder in chunks, then its cache cut to the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import numpy as np
from PIL.Image import Image

from vlkv.backend.base import Backend, Floats
from vlkv.cache import Cache
from vlkv.compress import compress, split_budget
from vlkv.decode_eviction import Eviction, evicting, room_for
from vlkv.embedding import TokenEmbedding
from vlkv.manifest import BYTES, Manifest
from vlkv.observe import Observer, observed_rows
from vlkv.policy import Policy
from vlkv.preprocess import preprocess
from vlkv.prompt import Prompt
from vlkv.result import Result

CHUNK = 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A prompt and how its cache is to be kept. `room` is how many new tokens it takes at the most.

    `scores` asks for the scores in the result.
    """

    prompt: Prompt
    images: Sequence[Image]
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
    """Runs one prompt.

    Args:
        job: the prompt and its policy.
        backend: the graphs.
        embedding: the token embeddings.
        manifest: the model's facts.
        progress: told the tokens done and in all, after each chunk.
        chunk: most tokens of a call.
    """
    length, policy = len(job.prompt.token_ids), job.policy
    result = new_result(job, manifest)
    start = perf_counter()
    embeds = embed(job.prompt, job.images, backend, embedding, manifest)
    result.seconds.vision = perf_counter() - start
    whole = policy.allocation == "all"
    rows = observed_rows(policy, length, job.prompt.last_image)
    observer = Observer(manifest.text, policy, length, rows, backend.threads)
    cache = Cache.empty(manifest.text, length + (job.room if whole else 0), backend.store)
    logits = read(embeds, 0, cache, observer, backend, result, progress, chunk)
    cache, eviction = cut(job, cache, observer, backend, result)
    return Prefilled(cache, logits, result, eviction)


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
    prompt: Prompt, images: Sequence[Image], backend: Backend, embedding: TokenEmbedding, manifest: Manifest
) -> Floats:
    """Embeddings `[S, hidden]` of the prompt, image features in the places of image tokens."""
    embeds = embedding.rows(prompt.token_ids)
    if images:
        features = backend.vision(preprocess(images, manifest.image))
        embeds[prompt.image_positions] = features.reshape(-1, features.shape[-1])
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
        if progress is not None:
            progress(last, length)
    ends: Floats = logits[0]
    return ends


def cut(
    job: Job, cache: Cache, observer: Observer, backend: Backend, result: Result, keep_source: bool = False
) -> tuple[Cache, Eviction | None]:
    """Cuts a whole prompt's cache to the job's budget; what is kept, and what decoding will evict.

    The given cache is emptied, unless `keep_source`. Without anything to evict it is returned as it is.
    """
    policy, length, start = job.policy, result.prompt_tokens, perf_counter()
    eviction = None
    if policy.allocation != "all" or keep_source:
        rows = len(observer.rows)
        counts = split_budget(policy, observer.sparsity, length, job.budget, rows)
        room = room_for(policy, job.budget, length, job.room)
        cache, kept = compress(policy, cache, observer, counts, room, backend, keep_source)
        scores = observer.scores
        eviction = evicting(policy, job.budget, length, kept, scores, room, backend.threads)
        result.sparsity = observer.sparsity.tolist()
        result.kept_tokens = counts.tolist()
        result.positions = None if policy.allocation == "all" else kept
        result.seconds.compress += perf_counter() - start
    if job.scores:
        result.scores = [score[0] for score in observer.scores]
    result.cache_bytes = cache.bytes
    return cache, eviction
