"""The cut at the end of prefill: a whole prompt's cache is compressed to the budget, and its sequence can decode."""

from __future__ import annotations

from collections import abc
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.cache import Cache, HostStore
from vlkv.dtypes import Float32, Int64
from vlkv.generation.sequence import Sequence
from vlkv.model import Model
from vlkv.ops.recall import RecallStore
from vlkv.policies.compress import compress, split_budget
from vlkv.policies.decode_eviction import evicting, slots_for
from vlkv.policies.observe import Observer


def cut(
    model: Model,
    sequence: Sequence,
    cache: Cache,
    observer: Observer,
    keep_source: bool = False,
    lane: Cache | None = None,
) -> None:
    """Compresses a whole prompt's cache to the sequence's budget, and gives the sequence its cache and eviction.

    The budget is a share of the prompt before pruning; a pruned prompt that is shorter than that stays whole.

    The given cache is emptied, unless `keep_source`. A policy that keeps everything takes it over as it is. With a
    `lane` the kept tokens go there, and `cache_bytes` counts the part that they and the answer may fill.
    """
    policy, result, backend, start = sequence.policy, sequence.result, model.backend, perf_counter()
    budget, length, windows = sequence.budget, result.prompt_tokens, sequence.windows
    run = sequence.positions
    spare = slots_for(policy, budget, length, sequence.max_new_tokens)
    sequence.eviction = sequence.recall = None
    capacity = [length + spare] * len(windows)
    if not policy.keeps_all or keep_source or any(windows):
        rows = observer.stays
        ceiling = None if lane is None else ceilings(lane, spare, length, windows)
        share = 1.0 if policy.keeps_all else min(1.0, budget * length / len(run))
        counts = split_budget(policy, observer.shares(policy), len(run), share, rows, ceiling, windows)
        capacity = [
            min(kept + spare, window) if window else kept + spare
            for kept, window in zip(counts.tolist(), windows, strict=True)
        ]
        store = None if policy.recall is None else recall_store(model, sequence)
        cache, kept = compress(
            policy, cache, observer, counts, capacity, backend, keep_source, lane, windows, store
        )
        sequence.recall, result.recall_bytes = store, 0 if store is None else store.bytes
        kept, scores = in_prompt(run, kept, observer.scores, length)
        threads = backend.threads
        sequence.eviction = evicting(policy, budget, length, kept, scores, capacity, threads, windows)
        result.sparsity = observer.sparsity.tolist()
        result.kept_tokens = counts.tolist()
        whole = policy.keeps_all and not any(windows) and len(run) == length
        result.positions = None if whole else kept
        result.seconds.compress += perf_counter() - start
    elif len(run) < length:
        result.kept_tokens = [len(run)] * len(cache.keys)
        result.positions = [np.tile(run.astype(np.int32), (array.shape[1], 1)) for array in cache.keys]
    if sequence.want_scores:
        result.scores = [score[0] for score in in_prompt(run, [], observer.scores, length)[1]]
    result.cache_bytes = cache.bytes
    if lane is not None and isinstance(lane.store, HostStore):
        array = lane.keys[0]
        token = 2 * array.shape[1] * array.shape[3] * array.itemsize
        result.cache_bytes = token * sum(capacity)
    sequence.cache = cache


def recall_store(model: Model, sequence: Sequence) -> RecallStore:
    """An empty store for what the sequence's policy evicts of its prompt."""
    text, recall = model.manifest.text, sequence.policy.recall
    assert recall is not None
    pages = recall.pages(sequence.result.prompt_tokens)
    return RecallStore(text.layers, text.kv_heads, text.head_dim, recall.page, pages, model.backend.threads)


def ceilings(lane: Cache, spare: int, length: int, windows: abc.Sequence[int]) -> list[int]:
    """The most prompt tokens that each layer of a lane has slots for, `[L]`; one that holds its window holds any."""
    slots = [lane.capacity(layer) for layer in range(len(lane.keys))]
    return [
        length if window and held >= window else held - spare
        for held, window in zip(slots, windows, strict=True)
    ]


def in_prompt(
    run: Int64, kept: list[NDArray[np.int32]], scores: list[Float32], length: int
) -> tuple[list[NDArray[np.int32]], list[Float32]]:
    """Translates slots of a pruned prompt into positions of the whole prompt.

    Args:
        run: the positions `[S]` of the tokens that ran.
        kept: kept slots per layer, `[Hkv, count]`.
        scores: scores of the slots per layer, `[1, Hkv, S]`.
        length: tokens of the whole prompt.

    Returns:
        Kept positions per layer, and scores `[1, Hkv, length]` with 0 for pruned tokens.
    """
    if len(run) == length:
        return kept, scores
    whole = []
    for score in scores:
        spread = np.zeros((*score.shape[:2], length), np.float32)
        spread[:, :, run] = score
        whole.append(spread)
    return [run[layer].astype(np.int32) for layer in kept], whole
