"""Arrays in a device's memory, and the interface of a device; nothing here depends on the kind of device.

B prompts, C cache slots, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlkv.storage.manifest import BYTES


class DeviceMemory(Protocol):
    """A block of device memory, freed when nothing refers to it any more."""

    @property
    def pointer(self) -> int:
        """The address of the first byte."""
        ...


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A view of device memory with NumPy's basic slicing, which copies nothing. Strides and offset are in elements."""

    memory: DeviceMemory
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] = ()
    offset: int = 0
    base: DeviceArray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.strides and self.shape:
            sizes = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
            object.__setattr__(self, "strides", tuple(sizes))

    @property
    def nbytes(self) -> int:
        """Bytes of the view's elements."""
        return prod(self.shape) * BYTES[self.dtype]

    @property
    def pointer(self) -> int:
        """The address of the first element."""
        return self.memory.pointer + self.offset * BYTES[self.dtype]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return BYTES[self.dtype]

    @property
    def root(self) -> DeviceArray:
        """The whole array that this array is a view of."""
        return self.base or self

    def rows(self, first: int, last: int) -> DeviceArray:
        """Rows of a dense array as an array of its own: it is its own root."""
        part = self[first:last]
        return DeviceArray(self.memory, part.shape, self.dtype, part.strides, part.offset)

    def __getitem__(self, index: tuple[slice | int, ...] | slice | int) -> DeviceArray:
        """A view; slices have step 1, integers drop their axis."""
        parts = index if isinstance(index, tuple) else (index,)
        shape, strides, offset = [], [], self.offset
        for axis, size in enumerate(self.shape):
            part = parts[axis] if axis < len(parts) else slice(None)
            if isinstance(part, slice):
                first, last, step = part.indices(size)
                if step != 1:
                    raise ValueError(f"step {step}: views of device arrays have step 1")
                shape.append(max(0, last - first))
                strides.append(self.strides[axis])
            else:
                first = range(size)[part]
            offset += first * self.strides[axis]
        return DeviceArray(self.memory, tuple(shape), self.dtype, tuple(strides), offset, self.root)


@dataclass(frozen=True)
class Copy:
    """A 2D copy: `height` rows of `width` bytes, with the first row's offset and the pitch of both sides."""

    target: int
    target_pitch: int
    source: int
    source_pitch: int
    width: int
    height: int


def copies(target: DeviceArray, source: DeviceArray) -> Iterator[Copy]:
    """The 2D copies that write one view into another of the same shape and dtype; offsets in bytes of memory."""
    if target.shape != source.shape or target.dtype != source.dtype:
        raise ValueError(f"{source.dtype} {source.shape} does not fit {target.dtype} {target.shape}")
    if not prod(target.shape):
        return
    item, inner, width = BYTES[target.dtype], len(target.shape), 1
    while inner and (
        target.shape[inner - 1] == 1 or target.strides[inner - 1] == source.strides[inner - 1] == width
    ):
        inner -= 1
        width *= target.shape[inner]
    height, pitches = 1, (width * item, width * item)
    if inner:
        inner -= 1
        height, pitches = target.shape[inner], (target.strides[inner] * item, source.strides[inner] * item)
    if min(pitches) < width * item:
        raise ValueError("views whose rows overlap or are not dense are not copied")
    for outer in product(*(range(size) for size in target.shape[:inner])):
        starts = [
            (view.offset + sum(i * stride for i, stride in zip(outer, view.strides, strict=False))) * item
            for view in (target, source)
        ]
        yield Copy(starts[0], pitches[0], starts[1], pitches[1], width * item, height)


class Bound(Protocol):
    """A graph with everything bound, to be run again and again. It holds what it is bound to until it is closed.

    Attributes:
        capturable: whether a run may be recorded into a graph of the device's: no allocation, no wait in it.
    """

    capturable: bool

    def __call__(self) -> None:
        """Enqueues the graph on the device's stream."""
        ...

    def close(self) -> None:
        """Lets go of everything. What was recorded of it has to be gone before."""
        ...


class Graph(Protocol):
    """One of an engine's graphs, opened on a device."""

    def run(
        self,
        inputs: Mapping[str, DeviceArray | NDArray[Any]],
        outputs: Mapping[str, DeviceArray],
        profile: int = 0,
    ) -> None:
        """Enqueues the graph on the device's stream. Inputs in host memory determine the sizes of outputs."""
        ...

    def bind(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], profile: int = 0
    ) -> Bound:
        """The same, for later and more than once, with a state of its own that no other run changes."""
        ...

    def close(self) -> None:
        """Lets go of the graph; it is run no more."""
        ...


class Replay(Protocol):
    """Work that is asked for again and again."""

    def __call__(self) -> None:
        """Enqueues it."""
        ...

    def close(self) -> None:
        """Lets go of what was recorded. The work itself is the caller's."""
        ...


class Mover(Protocol):
    """Moves a slot of each head into another, in all layers of a cache; L layers, B prompts, Hkv heads."""

    def __call__(self, slots: NDArray[np.int64], last: NDArray[np.int64]) -> None:
        """Enqueues it.

        Args:
            slots: `[L,B,Hkv]`, where to; -1 leaves a head alone.
            last: `[L,B]`, where from.
        """
        ...


class Device(Protocol):
    """One GPU with one stream: everything is done in the order in which it is asked for.

    What the garbage collector frees may be freed by any thread at any time, while a stream is captured too. So it is
    only noted then, and given back by the next `allocate`, `synchronize` or `used`.
    """

    def use(self) -> None:
        """Makes the calls of this thread go to this device. Cheap."""
        ...

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array with undefined content."""
        ...

    def clear(self, array: DeviceArray) -> None:
        """Enqueues zeros into a dense array."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A host array that the device copies from and to without a detour, of any content.

        Its memory is used anew after the first `synchronize` that follows its end.
        """
        ...

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Enqueues a copy between views of one shape and dtype."""
        ...

    def upload(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Enqueues a copy from a dense pinned array, which has to stay as it is until the device has read it."""
        ...

    def download(self, target: NDArray[Any], source: DeviceArray) -> None:
        """Enqueues a copy to a dense pinned array."""
        ...

    def synchronize(self) -> None:
        """Waits until all enqueued work is done."""
        ...

    def replay(self, work: Callable[[], None]) -> Replay:
        """The same work, as cheap to enqueue as the device can make it when it is asked for again and again."""
        ...

    def recover(self) -> None:
        """Ends a recording that another library began on the stream and left open, and drops the error of it."""
        ...

    def mover(self, keys: list[DeviceArray], values: list[DeviceArray]) -> Mover | None:
        """Moves slots of a cache's arrays, all at once; None where the device has no kernel for it."""
        ...

    @property
    def picks(self) -> bool:
        """Whether the device has a kernel for `pick`."""
        ...

    def pick(self, logits: DeviceArray, token: DeviceArray, best: DeviceArray) -> None:
        """Enqueues the greedy choice of each prompt's token.

        Args:
            logits: `[B,V]` float32, dense.
            token: `[B]` int32, written: the lowest id of the largest logit; a NaN is larger than every number.
            best: `[B]` float32, written: that logit.
        """
        ...

    @property
    def draws(self) -> bool:
        """Whether the device has a kernel for `draw`."""
        ...

    def draw(self, logits: DeviceArray, choice: DeviceArray, token: DeviceArray, best: DeviceArray) -> None:
        """Enqueues the draw of each prompt's token.

        Args:
            logits: `[B,V]` float32, dense.
            choice: `[B,4]`, the bits of float64: see `vlkv.backend.base.Choice`.
            token: `[B]` int32, written.
            best: `[B]` float32, written: the largest logit. If it is not finite, `token` is the one of `pick`.
        """
        ...

    @property
    def used(self) -> int:
        """Bytes of the arrays that are alive."""
        ...

    @property
    def free(self) -> int:
        """Bytes that arrays may take beside those."""
        ...

    def close(self) -> None:
        """Gives everything back. No array is used after that."""
        ...


def to_device(device: Device, array: NDArray[Any]) -> DeviceArray:
    """A host array as a device array. It is read before this returns, and nothing is waited for."""
    made = device.allocate(array.shape, array.dtype.name)
    send(device, made, array)
    return made


def send(device: Device, target: DeviceArray, array: NDArray[Any]) -> None:
    """Enqueues a copy from a host array, which is read before this returns."""
    staged = device.pinned(array.shape, array.dtype.name)
    staged[...] = array
    device.upload(target, staged)


def to_host(device: Device, *arrays: DeviceArray) -> list[NDArray[Any]]:
    """Device arrays, none of bfloat16, in host memory: one wait for all of them."""
    found = [device.pinned(array.shape, array.dtype) for array in arrays]
    for host, array in zip(found, arrays, strict=True):
        device.download(host, array)
    device.synchronize()
    return found
