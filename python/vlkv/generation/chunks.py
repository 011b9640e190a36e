"""Where the chunks of a prompt end, so that their number and size change no bit of the results.

Three kinds of arithmetic would notice (`docs/notes/serving.md`): up to 16 rows use other kernels, scores are added in
blocks of 64 rows, and attention runs blocks of rows, where a single row that is left over uses another kernel.
"""

from __future__ import annotations

from itertools import pairwise

PREFILL_CHUNK = 1024
"""Prompt tokens per call: 512 to 2048 are equally fast; one call for a long prompt is slower and needs more memory."""

GRAIN = 64
"""Chunks end at multiples of this from the first observed token, and no chunk is shorter."""

LEAST = 20
"""Tokens that a prompt runs at least if it reuses the others: more than the 16 of other kernels."""

BLOCK = 16
"""Divides the rows of attention's blocks (twice the head dimension): one row is left over at most where a chunk has
one row more than a multiple of this."""


def _edges(length: int, origin: int) -> tuple[int, int] | None:
    """The ends of the first and the last but one chunk, where these have to be the same for chunks of every size.

    Returns 0 and `length` for any, and None for a prompt that is too short for such ends.
    """
    first, last = 0, length
    if (length - origin) % BLOCK == 1:
        last = length - GRAIN - (length - origin) % GRAIN
    if origin % BLOCK == 1 or (length % BLOCK == 1 and last == length):
        wrong = {1, (origin - 1) % BLOCK, (length - 1) % BLOCK}
        first = next(end for end in range(GRAIN + 8, 2 * GRAIN) if end % BLOCK not in wrong)
    if (first and (first > origin or last - first < GRAIN)) or last < GRAIN:
        return None
    return first, last


def steady(length: int, origin: int) -> bool:
    """Whether the bits of a prompt's keys and values are the same in chunks of every size from `GRAIN` on."""
    return _edges(length, origin) is not None


def reusable(length: int, origin: int, most: int) -> int:
    """How many first tokens, at most `most`, may come from another prompt without a change in the others' bits.

    Args:
        length: tokens of the prompt.
        origin: the first observed token.
        most: of the tokens that are there.
    """
    edges = _edges(length, origin)
    if edges is None:
        return 0
    last = edges[1]
    if last < length:
        if most >= last:
            return last
        wrong = {(origin - 1) % BLOCK}
        most = min(most, last - GRAIN)
    else:
        wrong = {(origin - 1) % BLOCK, (length - 1) % BLOCK}
        most = min(most, length - LEAST)
    while most > 0 and most % BLOCK in wrong:
        most -= 1
    return max(most, 0)


def chunk_end(first: int, length: int, chunk: int, origin: int = 0, most: int = 0) -> int:
    """Returns where the chunk that begins at token `first` ends.

    Args:
        first: the chunk's first token.
        length: tokens of the prompt.
        chunk: the wanted size; the chunk may have up to 2 `GRAIN` - 1 tokens more, so that none is too small.
        origin: the first observed token; chunks end at multiples of `GRAIN` from there.
        most: the most tokens of a call of the backend; 0 for any number.
    """
    chunk = min(chunk, most or chunk)
    grain = min(GRAIN, chunk)
    if grain == GRAIN and not most and (edges := _edges(length, origin)) is not None:
        if first == 0 < edges[0]:
            return edges[0]
        length = edges[1] if edges[1] - first >= grain else length
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
    """Divides the tokens from `begin` to `length` into chunks: see `chunk_end`."""
    edges = [begin]
    while edges[-1] < length:
        edges.append(chunk_end(edges[-1], length, chunk, origin, most))
    return list(pairwise(edges))
