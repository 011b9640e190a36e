"""A prompt's first pass: its pictures and tokens through the decoder in chunks, then its cache cut to the budget."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import numpy as np
from PIL.Image import Image

from vlkv.backend.base import Backend, Floats
from vlkv.cache import Cache
from vlkv.compress import compress, split_budget
from vlkv.embedding import TokenEmbedding
from vlkv.manifest import Manifest
from vlkv.observe import Observer, observed_rows
from vlkv.policy import Policy
from vlkv.preprocess import preprocess
from vlkv.prompt import Prompt
from vlkv.result import Result, Seconds

CHUNK = 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A prompt and how its cache is to be kept. `room` is the number of slots for new tokens.

    `images` are pictures, or their pixel values `[N,3,height,width]`.
    """

    prompt: Prompt
    images: Sequence[Image] | Floats
    policy: Policy
    budget: float
    room: int


def chunk_bounds(length: int, chunk: int = CHUNK) -> list[tuple[int, int]]:
    """Equal parts of at most `chunk` tokens."""
    parts = -(-length // chunk)
    edges = [length * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def prefill(
    job: Job,
    backend: Backend,
    embedding: TokenEmbedding,
    manifest: Manifest,
    progress: Progress | None = None,
    chunk: int = CHUNK,
) -> tuple[Cache, Floats, Result]:
    """Runs one prompt to its end; `progress` is told the tokens done and in all. See `prefilling`."""
    length = len(job.prompt.token_ids)
    parts = prefilling(job, backend, embedding, manifest, chunk)
    while True:
        try:
            done = next(parts)
        except StopIteration as end:
            ready: tuple[Cache, Floats, Result] = end.value
            return ready
        if progress is not None and done:
            progress(done, length)


def prefilling(
    job: Job,
    backend: Backend,
    embedding: TokenEmbedding,
    manifest: Manifest,
    chunk: int = CHUNK,
    slot: Cache | None = None,
) -> Generator[int, None, tuple[Cache, Floats, Result]]:
    """Runs one prompt part by part: a picture, or a chunk of tokens, between one `next` and another.

    Closing the generator lets all go that it holds.

    Args:
        job: the prompt and its policy.
        backend: the graphs.
        embedding: the token embeddings.
        manifest: the model's facts.
        chunk: most tokens of a call; the answer does not depend on it.
        slot: where the cache is to end (B = 1), for a layer's kept tokens and `job.room` more; None makes arrays
            of that size.

    Yields:
        Prompt tokens done.

    Returns:
        The cache to decode with, logits `[V]` of the prompt's last token, and a result with all but the answer.
    """
    length, policy, text = len(job.prompt.token_ids), job.policy, manifest.text
    result = Result(
        prompt_tokens=length,
        image_tokens=len(job.prompt.image_positions),
        policy=policy.name,
        budget=job.budget,
        sparsity=[0.0] * text.layers,
        kept_tokens=[length] * text.layers,
    )
    spent = result.seconds
    embeds = yield from _embed(job, backend, embedding, manifest, spent)

    whole = policy.name == "full"
    rows = observed_rows(policy, length, job.prompt.last_image)
    observer = Observer(text, policy, length, backend.threads)
    cache = slot if whole and slot else Cache.empty(text, length + (job.room if whole else 0))
    for begin, end in chunk_bounds(length, chunk):
        start = perf_counter()
        seen = np.arange(max(begin, rows.start), min(end, rows.stop), dtype=np.int64)
        positions = np.arange(begin, end, dtype=np.int64)[np.newaxis]
        logits, observation = backend.extend(
            embeds[np.newaxis, begin:end], positions, cache, (seen - begin)[np.newaxis], end == length
        )
        scored = perf_counter()
        spent.prefill += scored - start
        observer.add(observation, cache, seen)
        spent.compress += perf_counter() - scored
        yield end
    if not whole:
        start = perf_counter()
        ceiling = None if slot is None else [slot.capacity(layer) - job.room for layer in range(text.layers)]
        counts = split_budget(policy, observer.sparsity, length, job.budget, ceiling)
        cache, result.positions = compress(policy, cache, observer, counts, job.room, backend, slot)
        result.sparsity = observer.sparsity.tolist()
        result.kept_tokens = counts.tolist()
        spent.compress += perf_counter() - start
    token = text.kv_heads * text.head_dim * 2 * np.dtype(np.float32).itemsize
    result.cache_bytes = token * sum(kept + job.room for kept in result.kept_tokens)
    result.cache_bytes_full = token * text.layers * (length + job.room)
    return cache, logits[0], result


def _embed(
    job: Job, backend: Backend, embedding: TokenEmbedding, manifest: Manifest, spent: Seconds
) -> Generator[int, None, Floats]:
    """Embeddings `[S, hidden]` of the prompt, image features in the places of image tokens; stops at each picture."""
    start = perf_counter()
    embeds = embedding.rows(job.prompt.token_ids)
    images, features = job.images, []
    if len(images):
        pixels = images if isinstance(images, np.ndarray) else preprocess(images, manifest.image)
        for number in range(len(pixels)):
            if number:
                spent.vision += perf_counter() - start
                yield 0
                start = perf_counter()
            features.append(backend.vision(pixels[number : number + 1]))
        embeds[job.prompt.image_positions] = np.concatenate(features).reshape(-1, embeds.shape[1])
    spent.vision += perf_counter() - start
    yield 0
    return embeds
