"""vlkv's own kernels for a device, by the C entry points of a library that was built with CUDA.

The library is the TensorRT plugin, or the native module where it was built with `-DVLKV_CUDA=ON`. Unverified: no test
ran on a GPU; the kernels run in the C++ suite on the host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from vlkv.errors import EngineError
from vlkv.ops.native import native


class Kernels(Protocol):
    """What a device may have of its own.

    Attributes:
        draws: whether `draw` is among it; libraries of earlier versions lack it.
    """

    draws: bool

    def move_slots(
        self, sizes: tuple[int, int, int, int], arrays: int, capacity: int, slots: int, last: int, stream: int
    ) -> None:
        """Enqueues the move of a slot of each head, in all layers of a cache; see `cpp/include/vlkv/move_slots.h`.

        Args:
            sizes: layers, prompts, KV heads, and bytes of a slot of a head.
            arrays: address of `[2L]` addresses: keys of all layers, then values.
            capacity: address of `[L]` int64.
            slots: address of `[L,B,Hkv]` int64, where to; -1 leaves a head alone.
            last: address of `[L,B]` int64, where from.
            stream: a `cudaStream_t`. All addresses are the device's.
        """
        ...

    def pick(self, batch: int, vocab: int, logits: int, token: int, best: int, stream: int) -> None:
        """Enqueues the greedy choice of each prompt's token; see `cpp/include/vlkv/pick.h`.

        Args:
            batch: prompts.
            vocab: logits of a prompt.
            logits: address of `[B,V]` float32.
            token: address of `[B]` int32, written: the lowest id of the largest logit, or the first NaN's.
            best: address of `[B]` float32, written: that logit.
            stream: a `cudaStream_t`. All addresses are the device's.
        """
        ...

    def draw(
        self, batch: int, vocab: int, logits: int, settings: int, token: int, best: int, stream: int
    ) -> None:
        """Enqueues the draw of each prompt's token; see `cpp/include/vlkv/draw.h`.

        Args:
            batch: prompts.
            vocab: logits of a prompt.
            logits: address of `[B,V]` float32.
            settings: address of `[B,4]` float64: temperature, top-k, top-p, and the random number.
            token: address of `[B]` int32, written.
            best: address of `[B]` float32, written: the largest logit.
            stream: a `cudaStream_t`. All addresses are the device's.
        """
        ...


class _MoveSlots(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "batch", "kv_heads", "slot_bytes")),
        *((name, ctypes.c_void_p) for name in ("arrays", "capacity", "slots", "last")),
    )


class _Pick(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "vocab")),
        *((name, ctypes.c_void_p) for name in ("logits", "token", "best")),
    )


class _Draw(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "vocab")),
        *((name, ctypes.c_void_p) for name in ("logits", "settings", "token", "best")),
    )


class Library:
    """The entry points of one library; see `Kernels`."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._move, self._pick = library.vlkv_move_slots_cuda, library.vlkv_pick_cuda
        self._draw = getattr(library, "vlkv_draw_cuda", None)
        self.draws = self._draw is not None
        for entry in (self._move, self._pick, *((self._draw,) if self._draw else ())):
            entry.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
        self.cuda = bool(library.vlkv_has_cuda())

    def move_slots(
        self, sizes: tuple[int, int, int, int], arrays: int, capacity: int, slots: int, last: int, stream: int
    ) -> None:
        """See `Kernels.move_slots`."""
        _call(self._move, _MoveSlots(*sizes, arrays, capacity, slots, last), stream)

    def pick(self, batch: int, vocab: int, logits: int, token: int, best: int, stream: int) -> None:
        """See `Kernels.pick`."""
        _call(self._pick, _Pick(batch, vocab, logits, token, best), stream)

    def draw(
        self, batch: int, vocab: int, logits: int, settings: int, token: int, best: int, stream: int
    ) -> None:
        """See `Kernels.draw`."""
        if self._draw is None:
            raise EngineError("this library of vlkv's kernels is of an earlier version and draws no tokens")
        _call(self._draw, _Draw(batch, vocab, logits, settings, token, best), stream)


def _call(entry: Any, given: ctypes.Structure, stream: int) -> None:
    said = ctypes.create_string_buffer(400)
    if entry(ctypes.byref(given), stream, said, len(said)):
        raise EngineError(f"vlkv's kernel failed: {said.value.decode(errors='replace')}")


def find(paths: Iterable[Path | None] = ()) -> Kernels | None:
    """The kernels of the first of these libraries that has them, or of the native module; None where none has."""
    for path in (*paths, Path(native().__file__ or "")):
        if path is None:
            continue
        try:
            library = Library(path)
        except (OSError, AttributeError):
            continue
        if library.cuda:
            return library
    return None
