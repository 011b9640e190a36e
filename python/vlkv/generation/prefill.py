"""Prefill: a prompt's pictures and tokens run in chunks, then its cache is cut to the budget (`cut.py`)."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32, Int64
from vlkv.generation.chunks import PREFILL_CHUNK, chunk_end, reusable, steady
from vlkv.generation.cut import cut
from vlkv.generation.result import Seconds
from vlkv.generation.reuse import Known, Reading
from vlkv.generation.sequence import Sequence
from vlkv.inputs.layouts import pack
from vlkv.inputs.preprocess import pixel_values
from vlkv.inputs.prompt import Prompt
from vlkv.model import Model
from vlkv.policies.observe import PROBES, Observer, Probe, observed_rows
from vlkv.policies.policy import Policy
from vlkv.pruning.picture import Picture, Pruner

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
    policy, text, backend = sequence.policy, model.manifest.text, model.backend
    prompt, spent = sequence.prompt, sequence.result.seconds
    length = len(prompt.token_ids)
    rows = observed_rows(policy, length, prompt.last_image)
    origin = rows.start if rows else 0
    place: Cache | None = None

    def working(tokens: int) -> Cache:
        nonlocal place
        place = lane() if sequence.kept_whole and lane else None
        new_tokens = sequence.max_new_tokens if sequence.kept_whole else 0
        return place or Cache.empty(text, tokens + new_tokens, backend.store)

    def most(tokens: int) -> int:
        # queries of the observation window are not kept, so its rows run
        return reusable(length, origin, min(tokens, rows.start) if rows else tokens)

    # the beginning of a pruned or probed prompt is not that of the prompt as it was given
    shared = reading if sequence.pruner is None and policy.rows != "probe" else None
    known = 0 if shared is None else shared.reuse.known(shared.names, most)
    cache = None
    if shared is not None and known:
        start, cache = perf_counter(), working(length)
        shared.reuse.load(shared.names, known, cache)
        sequence.result.cached_tokens = known
        spent.prefill += perf_counter() - start
    tokens = yield from _embedding(model, prompt, sequence.images, sequence.pruner, spent, known, reading)
    sequence.prune_to(tokens.positions)
    observer = observing(model, policy, tokens, prompt)
    cache = cache or working(len(tokens.positions) + observer.room)
    sequence.logits = yield from _running(model, tokens, known, cache, observer, spent, chunk)
    if shared is not None and shared.names.ends and shared.names.ends[-1] < length and steady(length, origin):
        shared.reuse.save(shared.names, cache)
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


def observing(model: Model, policy: Policy, tokens: Tokens, prompt: Prompt, since: int = 0) -> Observer:
    """A new observer of a prompt's tokens; `since` is the position of the newest turn's first token."""
    length, last_image = len(tokens.positions), tokens.slot(prompt.last_image)
    rows = observed_rows(policy, length, last_image, tokens.slot(since - 1) + 1)
    observer = Observer(model.manifest.text, policy, length, rows, model.backend.threads)
    observer.image = np.isin(tokens.positions, prompt.image_positions)
    if policy.rows == "probe" and last_image >= 0:
        observer.probe = Probe(last_image + 1, np.flatnonzero(observer.image))
    return observer


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a prompt that run; slot n of the cache receives the n-th.

    Fields:
        embeds: their embeddings `[S, hidden]`, with image features in place of image tokens.
        positions: their positions in the prompt `[S]`, ascending.
    """

    embeds: Float32
    positions: Int64

    def slot(self, position: int) -> int:
        """The slot of the last token that is not behind a position of the prompt; -1 if there is none."""
        return int(np.searchsorted(self.positions, position, side="right")) - 1

    def with_more(self, more: Tokens, begin: int) -> Tokens:
        """These tokens and others behind them, whose positions count from `begin`."""
        return Tokens(
            np.concatenate([self.embeds, more.embeds]),
            np.concatenate([self.positions, begin + more.positions]),
        )


def embed(
    model: Model,
    prompt: Prompt,
    images: abc.Sequence[Image | Float32 | Known],
    pruner: Pruner | None = None,
    spent: Seconds | None = None,
) -> Tokens:
    """The prompt's tokens with their embeddings, without those that the pruner leaves out."""
    return finish(_embedding(model, prompt, images, pruner, spent or Seconds()))


def _embedding(
    model: Model,
    prompt: Prompt,
    images: abc.Sequence[Image | Float32 | Known],
    pruner: Pruner | None,
    spent: Seconds,
    since: int = 0,
    reading: Reading | None = None,
) -> Parts[Tokens]:
    """`embed`, one tile per part. Image tokens of pictures that end before token `since` get no features."""
    start = perf_counter()
    embeds = model.embedding.rows(prompt.token_ids)
    kept = np.ones(len(embeds), bool)
    question = embeds[:0] if pruner is None else embeds[asking(prompt)]
    begin = 0
    for number, (picture, layout) in enumerate(zip(images, prompt.pictures, strict=True), 1):
        places = prompt.image_positions[begin : begin + len(layout.sources)]
        begin += len(layout.sources)
        if places[-1] < since:
            continue
        if reading is not None and pruner is None:
            known = reading.reuse.features(reading.names.pictures[number - 1])
            if known is None and isinstance(picture, Known):
                known = picture.features
                reading.reuse.save_features(picture.name, known)
            if known is not None:
                embeds[places] = known
                continue
        assert not isinstance(picture, Known)
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
        if reading is not None:
            reading.reuse.save_features(reading.names.pictures[number - 1], packed)
        embeds[places] = packed
        if pruner is not None:
            kept[places] = pruner.keep(Picture(pixels, packed, layout, facts, question))
    positions = np.flatnonzero(kept)
    embeds = embeds if len(positions) == len(embeds) else embeds[positions]
    spent.vision += perf_counter() - start
    return Tokens(embeds, positions)


def asking(prompt: Prompt) -> Int64:
    """The positions of the text behind the last picture, or of all text if none follows."""
    text = np.setdiff1d(np.arange(len(prompt.token_ids)), prompt.image_positions)
    behind = text[text > prompt.image_positions.max(initial=-1)]
    return behind if len(behind) else text


def run_rows(
    model: Model, tokens: Tokens, begin: int, cache: Cache, observer: Observer, spent: Seconds
) -> Float32:
    """Runs the tokens from slot `begin` on, behind a cache that holds the earlier ones.

    The observer receives the rows of its window that run. Returns logits `[V]` of the last token.
    """
    return finish(_running(model, tokens, begin, cache, observer, spent, PREFILL_CHUNK))


def _running(
    model: Model,
    tokens: Tokens,
    begin: int,
    cache: Cache,
    observer: Observer,
    spent: Seconds,
    chunk: Chunk,
) -> Parts[Float32]:
    """`run_rows`, one chunk per part. Probes run once the last picture has run."""
    length, probe = len(tokens.embeds), observer.probe
    logits = np.zeros(0, np.float32)
    if probe is not None and begin < probe.end:
        logits = yield from _extending(model, tokens, (begin, probe.end), cache, observer, spent, chunk)
        yield from _probing(model, tokens, probe, cache, observer, spent)
        begin = probe.end
    if begin < length:
        logits = yield from _extending(model, tokens, (begin, length), cache, observer, spent, chunk)
    start = perf_counter()
    observer.finish(cache)
    spent.compress += perf_counter() - start
    return logits


def _probing(
    model: Model, tokens: Tokens, probe: Probe, cache: Cache, observer: Observer, spent: Seconds
) -> Parts[None]:
    """Runs image tokens a second time behind the last picture, observes them, and discards them.

    Their positions count on from the picture. Each call attends to the prompt and to its own probes.
    """
    held = cache.length.copy()
    start = int(tokens.positions[probe.end - 1]) + 1
    for first in range(0, len(probe.slots), PROBES):
        began = perf_counter()
        slots = probe.slots[first : first + PROBES]
        numbers = np.arange(len(slots))
        positions = (start + first + numbers)[np.newaxis]
        _, seen = model.backend.extend(
            tokens.embeds[np.newaxis, slots], positions, cache, numbers[np.newaxis], True
        )
        scored = perf_counter()
        spent.prefill += scored - began
        observer.add(seen, cache, probe.end + numbers)
        cache.length[:] = held
        spent.compress += perf_counter() - scored
        yield 0


def _extending(
    model: Model,
    tokens: Tokens,
    part: tuple[int, int],
    cache: Cache,
    observer: Observer,
    spent: Seconds,
    chunk: Chunk,
) -> Parts[Float32]:
    """Runs the tokens of a range of slots, one chunk per part. Returns the last token's logits `[V]`."""
    rows, backend = observer.rows, model.backend
    begin, length = part
    first, last = begin, begin
    while last < length:
        start, first = perf_counter(), last
        wanted = chunk if isinstance(chunk, int) else chunk()
        last = chunk_end(first, length, wanted, rows.start if rows else 0, backend.chunk)
        seen = np.arange(max(first, rows.start), min(last, rows.stop), dtype=np.int64)
        positions = tokens.positions[np.newaxis, first:last]
        logits, observation = backend.extend(
            tokens.embeds[np.newaxis, first:last],
            positions,
            cache,
            (seen - first)[np.newaxis],
            last == length,
        )
        scored = perf_counter()
        spent.prefill += scored - start
        observer.add(observation, cache, seen)
        spent.compress += perf_counter() - scored
        yield last
    ends: Float32 = logits[0]
    return ends
