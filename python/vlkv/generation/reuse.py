"""Reuse: features of pictures, and keys and values of prompts' beginnings, kept from earlier requests.

A prompt's beginning reaches from its first token to the last image token of a picture. A later prompt that begins with
the same tokens and pictures copies the keys and values, and runs its other tokens. Its results have the same bits as
without reuse: `vlkv.generation.chunks` sees to that. Tokens of the observation window run again, since their queries
are not kept; a policy that observes all rows reuses features only.

L layers, Hkv key/value heads, D head dimension, T tokens of a picture with features.
"""

from __future__ import annotations

from collections import OrderedDict, abc
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32
from vlkv.inputs.layouts import Layout
from vlkv.inputs.prompt import Prompt

Most = abc.Callable[[int], int]
"""How many first tokens of those that are there a prompt may reuse."""


@dataclass(frozen=True, eq=False)
class Known:
    """A picture that is not decoded, since its features are known.

    Fields:
        name: as in `Names.pictures`.
        features: `[T, hidden]`.
    """

    name: bytes
    features: Float32


@dataclass(frozen=True)
class Names:
    """SHA-256 digests that identify the contents of a prompt's pictures and beginnings.

    Fields:
        pictures: of each picture: its pixel values and its layout.
        beginnings: of each picture: all tokens up to its last image token, and the pictures among them.
        ends: how many tokens that are.
    """

    pictures: tuple[bytes, ...] = ()
    beginnings: tuple[bytes, ...] = ()
    ends: tuple[int, ...] = ()


def names_of(prompt: Prompt, images: abc.Sequence[Float32 | Known], owner: str = "") -> Names:
    """The names of a prompt's contents; `images` are pixel values `[tiles,3,height,width]`, or known.

    Contents of different owners have different names.
    """
    pictures, beginnings, ends, tokens = [], [], [], 0
    for pixels, layout in zip(images, prompt.pictures, strict=True):
        tokens += len(layout.sources)
        if isinstance(pixels, Known):
            pictures.append(pixels.name)
        else:
            shape = repr(pixels.shape).encode()
            pictures.append(picture_digest(layout, owner, shape, np.ascontiguousarray(pixels).data))
        ends.append(int(prompt.image_positions[tokens - 1]) + 1)
        whole = sha256(b"".join((str(len(pictures)).encode(), *pictures)))
        whole.update(np.ascontiguousarray(prompt.token_ids[: ends[-1]]).data)
        beginnings.append(whole.digest())
    return Names(tuple(pictures), tuple(beginnings), tuple(ends))


def picture_digest(layout: Layout, owner: str, *contents: bytes | memoryview) -> bytes:
    """The SHA-256 of what a picture holds, of how it is laid out, and of who gave it."""
    found = sha256(sha256(owner.encode()).digest())
    found.update(repr((layout.size, layout.tiles, layout.count, layout.grid, layout.scaled)).encode())
    found.update(repr((layout.frame, layout.sources.shape)).encode())
    for content in (np.ascontiguousarray(layout.sources).data, *contents):
        found.update(content)
    return found.digest()


@dataclass(frozen=True)
class _Beginning:
    """Keys and values `[Hkv, tokens, D]` per layer."""

    keys: list[Float32]
    values: list[Float32]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.keys, *self.values))


class Reuse:
    """Features, keys and values of earlier requests, at most `limit` bytes; the least recently used ones go first.

    For one thread; others may read the attributes.

    Args:
        limit: the most bytes; 0 keeps nothing.
        beginnings: whether to keep keys and values; False for operators whose results depend on the chunks.

    Attributes:
        limit: the most bytes.
        bytes: bytes that are held now.
        hits, misses: prompts with pictures whose beginning was found, and those whose beginning was not.
        picture_hits, picture_misses: pictures whose features were needed, and were found or not.
        tokens: prompt tokens that were not run again.
    """

    def __init__(self, limit: int, beginnings: bool = True) -> None:
        self.limit, self.bytes = limit, 0
        self.hits = self.misses = self.picture_hits = self.picture_misses = self.tokens = 0
        self._allowed, self._beginnings = limit, beginnings
        self._held: OrderedDict[bytes, Float32 | _Beginning] = OrderedDict()

    def fit(self, free: int) -> None:
        """Holds at most `free` bytes from now on, and no more than `limit`."""
        self._allowed = max(0, min(self.limit, free))
        self._shrink(self._allowed)

    def clear(self) -> None:
        """Lets go of everything."""
        self._shrink(0)

    def touch(self, names: Names) -> None:
        """Marks contents that are about to be needed as used."""
        for name in (*names.pictures, *names.beginnings):
            if name in self._held:
                self._held.move_to_end(name)

    def known(self, names: Names, most: Most) -> int:
        """How many of a prompt's first tokens need not run: `load` has their keys and values."""
        found = self._longest(names)
        tokens = 0 if found is None else most(names.ends[found])
        self.hits, self.misses = self.hits + (tokens > 0), self.misses + (tokens == 0)
        self.tokens += tokens
        return tokens

    def load(self, names: Names, tokens: int, cache: Cache) -> None:
        """Copies the keys and values of a prompt's first tokens, as many as `known` said, to an empty cache (B = 1)."""
        found = self._longest(names)
        if found is None:
            raise RuntimeError("nothing is known of the prompt's beginning")
        held = self._held[names.beginnings[found]]
        assert isinstance(held, _Beginning)
        for layer, (keys, values) in enumerate(zip(held.keys, held.values, strict=True)):
            cache.keys[layer][0, :, :tokens] = keys[:, :tokens]
            cache.values[layer][0, :, :tokens] = values[:, :tokens]
        cache.length[:] = tokens

    def save(self, names: Names, cache: Cache) -> None:
        """Keeps the keys and values of a prompt's beginning; slot n of the cache (B = 1) holds token n."""
        if not self._beginnings or not names.ends or names.beginnings[-1] in self._held:
            return
        end = names.ends[-1]
        arrays = (*cache.keys, *cache.values)
        if self._make_room(sum(array[0, :, :end].nbytes for array in arrays)):
            keys, values = (
                [array[0, :, :end].copy() for array in kind] for kind in (cache.keys, cache.values)
            )
            self._add(names.beginnings[-1], _Beginning(keys, values))

    def peek(self, name: bytes | None) -> Known | None:
        """A picture whose features are held now, for any thread; it may keep them although they go here."""
        found = None if name is None else self._held.get(name)
        return Known(name, found) if name is not None and isinstance(found, np.ndarray) else None

    def features(self, name: bytes) -> Float32 | None:
        """The features `[T, hidden]` of a picture; None if they are not known."""
        found = self._held.get(name)
        self.picture_hits, self.picture_misses = (
            self.picture_hits + (found is not None),
            self.picture_misses + (found is None),
        )
        if found is None:
            return None
        assert isinstance(found, np.ndarray)
        self._held.move_to_end(name)
        return found

    def save_features(self, name: bytes, features: Float32) -> None:
        """Keeps the features `[T, hidden]` of a picture."""
        if name not in self._held and self._make_room(features.nbytes):
            self._add(name, features)

    def _longest(self, names: Names) -> int | None:
        """The last picture whose beginning is held."""
        for number in reversed(range(len(names.ends))):
            if names.beginnings[number] in self._held:
                self._held.move_to_end(names.beginnings[number])
                return number
        return None

    def _make_room(self, size: int) -> bool:
        if size > self._allowed:
            return False
        self._shrink(self._allowed - size)
        return True

    def _add(self, name: bytes, held: Float32 | _Beginning) -> None:
        self._held[name] = held
        self.bytes += held.nbytes

    def _shrink(self, size: int) -> None:
        while self.bytes > size:
            _, gone = self._held.popitem(last=False)
            self.bytes -= gone.nbytes


@dataclass(frozen=True)
class Reading:
    """What one prompt reuses, and what it leaves to others.

    Fields:
        reuse: holds the contents.
        names: of the prompt's.
    """

    reuse: Reuse
    names: Names
