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
    """A prompt and how its cache is to be kept. `room` is the number of slots for new tokens."""

    prompt: Prompt
    images: Sequence[Image]
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
    """Runs one prompt.

    Args:
        job: the prompt and its policy.
        backend: the graphs.
        embedding: the token embeddings.
        manifest: the model's facts.
        progress: told the tokens done and in all, after each chunk.
        chunk: most tokens of a call.

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
    start = perf_counter()
    embeds = _embed(job, backend, embedding, manifest)
    spent.vision = perf_counter() - start

    whole = policy.name == "full"
    rows = observed_rows(policy, length, job.prompt.last_image)
    observer = Observer(text, policy, length, backend.threads)
    cache = Cache.empty(text, length + (job.room if whole else 0), backend.store)
    for begin, end in chunk_bounds(length, min(chunk, backend.chunk or chunk)):
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
        if progress is not None:
            progress(end, length)
    if not whole:
        start = perf_counter()
        counts = split_budget(policy, observer.sparsity, length, job.budget)
        cache, result.positions = compress(policy, cache, observer, counts, job.room, backend)
        result.sparsity = observer.sparsity.tolist()
        result.kept_tokens = counts.tolist()
        spent.compress += perf_counter() - start
    result.cache_bytes = cache.bytes
    slots = text.layers * text.kv_heads * text.head_dim * 2 * BYTES[manifest.cache_dtype]
    result.cache_bytes_full = slots * (length + job.room)
    return cache, logits[0], result


def _embed(job: Job, backend: Backend, embedding: TokenEmbedding, manifest: Manifest) -> Floats:
    """Embeddings `[S, hidden]` of the prompt, image features in the places of image tokens."""
    embeds = embedding.rows(job.prompt.token_ids)
    if job.images:
        features = backend.vision(preprocess(job.images, manifest.image))
        embeds[job.prompt.image_positions] = features.reshape(-1, features.shape[-1])
    return embeds
