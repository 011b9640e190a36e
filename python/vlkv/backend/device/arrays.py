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
    def root(self) -> DeviceArray:
        """The whole array that this array is a view of."""
        return self.base or self

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


class Device(Protocol):
    """One GPU with one stream: work runs in the order in which it is enqueued."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array with undefined content."""
        ...

    def clear(self, array: DeviceArray) -> None:
        """Enqueues zeros into a whole array."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A host array in pinned memory, which the device copies directly."""
        ...

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Enqueues a copy between views of one shape and dtype."""
        ...

    def upload(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Enqueues a copy from a dense host array, which must not change until the device has read it."""
        ...

    def download(self, target: NDArray[Any], source: DeviceArray) -> None:
        """Enqueues a copy to a dense host array."""
        ...

    def synchronize(self) -> None:
        """Waits until all enqueued work is done."""
        ...

    def replay(self, work: Callable[[], None]) -> Callable[[], None]:
        """Returns a function that enqueues the same work as cheaply as the device can repeat it."""
        ...


def to_device(device: Device, array: NDArray[Any]) -> DeviceArray:
    """Copies a host array to the device. The copy is complete when this returns."""
    dense = np.ascontiguousarray(array)
    made = device.allocate(dense.shape, dense.dtype.name)
    device.upload(made, dense)
    device.synchronize()
    return made


def to_host(device: Device, array: DeviceArray) -> NDArray[Any]:
    """Copies a device array, not of bfloat16, to host memory."""
    host = device.pinned(array.shape, array.dtype)
    device.download(host, array)
    device.synchronize()
    return host
