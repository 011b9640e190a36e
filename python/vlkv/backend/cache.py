"""The KV cache: one pair of arrays per layer; each layer has its own capacity and lengths.

B prompts, C cache slots, Hkv key/value heads, D head dimension, L layers.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlkv.storage.manifest import TextFacts, cache_row

MAPPED = 1 << 20
"""Arrays of so many bytes have memory of their own, which returns to the operating system when they go. The C library
keeps what it gets back for later: a whole prompt's cache, 64 MiB and more, beside the answers that need the memory."""
HUGE = 4 << 20
"""From here on NumPy asks for huge pages too."""

Array = Any
"""A NumPy array, or a device's array with the same slicing.

In NumPy bfloat16 is uint16. A row of int8 has D codes and then the four bytes of a float32 scale (`cpp/include/vlkv/
types.h`), so a slot is copied and moved as one row whatever its dtype.
"""


class Store(Protocol):
    """Allocates and copies the arrays of a cache.

    Attributes:
        sets: the number of sets of a cache's arrays that exist during decoding: two where each step writes new ones.
    """

    sets: int

    def empty(self, shape: tuple[int, ...]) -> Array:
        """A new array `[B, Hkv, C, row]` with undefined content."""
        ...

    def row(self, head_dim: int) -> int:
        """The elements of one slot of one head: D, or more if something is stored beside them."""
        ...

    def assign(self, target: Array, source: Array) -> None:
        """Copies one view into another."""
        ...


class HostStore:
    """Stores caches as NumPy arrays of a dtype by its name in the manifest."""

    sets = 1

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype

    @property
    def numpy(self) -> np.dtype[Any]:
        """The arrays' dtype in NumPy: uint16 for bfloat16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    def row(self, head_dim: int) -> int:
        """See `Store.row`."""
        return cache_row(self.dtype, head_dim)

    def empty(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """See `Store.empty`. Pages are only allocated when tokens are written to them.

        Free slots hold zeros: attention with standard operators multiplies them by 0, and NaN times 0 is NaN.
        """
        size = prod(shape) * self.numpy.itemsize
        if size < MAPPED or not hasattr(mmap, "MAP_ANONYMOUS"):
            return np.zeros(shape, self.numpy)
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"a cache array of {size} bytes could not be allocated") from error
        if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, self.numpy).reshape(shape)

    def assign(self, target: Array, source: Array) -> None:
        """See `Store.assign`."""
        target[...] = source

    def rows(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """The numbers `[..., D]` that stored rows hold; those of int8 stay rotated, as `types.h` says."""
        if self.dtype == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "int8":
            scale = np.ascontiguousarray(array[..., -4:]).view(np.float32)
            codes: NDArray[np.float32] = array[..., :-4].astype(np.float32) * scale
            return codes
        return array.astype(np.float32, copy=False)


HOST = HostStore()


class Cache:
    """Keys and values of B prompts.

    Attributes:
        keys: per layer `[B, Hkv, C_l, row]`; a row holds D elements, see `Array`.
        values: the same shapes.
        length: valid slots `[L, B]`, int64; slots past a layer's length are undefined.
        store: allocates the arrays.
        recall: the number of each prompt's store of evicted tokens `[B]`, int64; 0 for none. The loop that steps over
            the cache sets it.
    """

    def __init__(
        self, keys: list[Array], values: list[Array], length: NDArray[np.int64], store: Store = HOST
    ) -> None:
        self.keys = keys
        self.values = values
        self.length = length
        self.store = store
        self.recall = np.zeros(length.shape[1], np.int64)

    @classmethod
    def empty(cls, text: TextFacts, capacity: int, store: Store = HOST) -> Cache:
        """A cache for one prompt with `capacity` slots in every layer."""
        shape = (1, text.kv_heads, capacity, store.row(text.head_dim))
        keys, values = ([store.empty(shape) for _ in range(text.layers)] for _ in range(2))
        return cls(keys, values, np.zeros((text.layers, 1), np.int64), store)

    @property
    def batch(self) -> int:
        """The number of prompts, B."""
        return int(self.length.shape[1])

    @property
    def bytes(self) -> int:
        """Bytes of the arrays during decoding, including free slots and without freed layers."""
        return self.store.sets * sum(int(array.nbytes) for array in (*self.keys, *self.values))

    def capacity(self, layer: int) -> int:
        """The slots of a layer, C_l."""
        return int(self.keys[layer].shape[2])

    def like(self, capacity: Sequence[int], batch: int = 1) -> Cache:
        """An empty cache with the same heads and dtype, and the given capacities."""
        _, heads, _, dim = self.keys[0].shape
        shapes = [(batch, heads, slots, dim) for slots in capacity]
        keys, values = ([self.store.empty(shape) for shape in shapes] for _ in range(2))
        return Cache(keys, values, np.zeros((len(capacity), batch), np.int64), self.store)

    def free(self, layer: int) -> None:
        """Frees a layer's arrays."""
        batch, heads, _, dim = self.keys[layer].shape
        self.keys[layer] = self.values[layer] = self.store.empty((batch, heads, 0, dim))

    def grow(self, spare: int, windows: Sequence[int] | None = None) -> None:
        """Gives each layer new arrays with `spare` free slots behind its longest prompt.

        It goes array by array, so that the cache is whole wherever it is interrupted. `windows` `[L]` is the most slots
        of each layer, 0 for any number.
        """
        slots = self._slots(spare, windows)
        for kind in (self.keys, self.values):
            for layer, wanted in enumerate(slots):
                kind[layer] = self._resized(kind[layer], layer, wanted)

    def copy(self, spare: int, windows: Sequence[int] | None = None) -> Cache:
        """The same tokens in arrays of their own, with as many slots as `grow` gives."""
        slots = self._slots(spare, windows)
        keys, values = (
            [self._resized(array, layer, slots[layer]) for layer, array in enumerate(kind)]
            for kind in (self.keys, self.values)
        )
        return Cache(keys, values, self.length.copy(), self.store)

    def _slots(self, spare: int, windows: Sequence[int] | None) -> list[int]:
        slots = [int(longest) + spare for longest in self.length.max(axis=1)]
        if windows is not None:
            slots = [min(n, most) if most else n for n, most in zip(slots, windows, strict=True)]
        return slots

    def _resized(self, array: Array, layer: int, slots: int) -> Array:
        batch, heads, _, dim = array.shape
        other = self.store.empty((batch, heads, slots, dim))
        for row, valid in enumerate(self.length[layer].tolist()):
            self.store.assign(other[row, :, :valid], array[row, :, :valid])
        return other

    def compacted(self, rows: Sequence[int]) -> tuple[Cache, list[int]]:
        """Those prompts alone, as a view of this cache's first rows, whose others' tokens are overwritten.

        Args:
            rows: whose tokens stay, ascending.

        Returns:
            The view, and which row each of its rows was.
        """
        count = len(rows)
        places = list(range(count))
        movers = [row for row in rows if row >= count]
        for place in sorted(set(places) - set(rows)):
            places[place] = source = movers.pop()
            for layer, tokens in enumerate(self.length[:, source].tolist()):
                for array in (self.keys[layer], self.values[layer]):
                    self.store.assign(array[place, :, :tokens], array[source, :, :tokens])
        keys, values = ([array[:count] for array in arrays] for arrays in (self.keys, self.values))
        return Cache(keys, values, np.ascontiguousarray(self.length[:, places]), self.store), places

    def overwrite(self, slots: NDArray[np.int64]) -> None:
        """Moves each prompt's last token to another slot, and decreases the length by one.

        Attention does not depend on the order of slots, so dropping a token needs no more than this: D numbers are
        moved per head.

        Args:
            slots: the slots `[L, B, Hkv]` int64 to overwrite, under the length; -1 in all heads leaves a layer of a
                prompt unchanged.
        """
        if not isinstance(self.store, HostStore):
            self._assign(slots)
            return
        for layer, prompt in np.argwhere(slots[:, :, 0] >= 0).tolist():
            last = int(self.length[layer, prompt]) - 1
            heads = slots[layer, prompt].tolist()
            for array in (self.keys[layer][prompt], self.values[layer][prompt]):
                if min(heads) == max(heads):
                    array[:, heads[0]] = array[:, last]
                    continue
                for head, slot in enumerate(heads):
                    array[head, slot] = array[head, last]
            self.length[layer, prompt] = last

    def _assign(self, slots: NDArray[np.int64]) -> None:
        """`overwrite` with the store's copies, one for each head of each layer that drops a token."""
        for layer, row, head in np.argwhere(slots >= 0).tolist():
            slot, last = int(slots[layer, row, head]), int(self.length[layer, row]) - 1
            for array in (self.keys[layer], self.values[layer]) if slot != last else ():
                line = array[row, head]
                self.store.assign(line[slot : slot + 1], line[last : last + 1])
        self.length -= slots[:, :, 0] >= 0


def join(parts: list[Cache], capacity: Sequence[int] | None = None) -> Cache:
    """Joins the caches of several prompts. Each layer gets the given capacity, or the largest of the parts'.

    The parts are emptied layer by layer, so at most one layer exists twice. A single part without a given capacity is
    returned as it is.
    """
    if capacity is None:
        if len(parts) == 1:
            return parts[0]
        capacity = [max(part.capacity(layer) for part in parts) for layer in range(len(parts[0].keys))]
    length = np.concatenate([part.length for part in parts], axis=1)
    joined = parts[0].like([0] * len(length), len(parts))
    for layer, slots in enumerate(capacity):
        for kind in ("keys", "values"):
            _, heads, _, dim = getattr(parts[0], kind)[layer].shape
            array = joined.store.empty((len(parts), heads, slots, dim))
            for row, part in enumerate(parts):
                valid = int(part.length[layer, 0])
                joined.store.assign(array[row, :, :valid], getattr(part, kind)[layer][0, :, :valid])
            getattr(joined, kind)[layer] = array
        for part in parts:
            part.free(layer)
    joined.length[:] = length
    return joined
