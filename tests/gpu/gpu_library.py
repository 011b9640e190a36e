"""The C entry points of libvlkv for torch tensors on the device. It needs neither vlkv's package nor NumPy."""

import ctypes
import os
from pathlib import Path

import torch

BUILD = Path(os.environ.get("VLKV_GPU_BUILD", Path(__file__).parents[2] / "build" / "gpu"))
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_pointer, _long, _bytes, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int32


class _Tensor(ctypes.Structure):
    _fields_ = [("data", _pointer), ("bytes", _bytes), ("dtype", _int)] + [
        (f"stride_{axis}", _long) for axis in "bhs"
    ]


class _Score(ctypes.Structure):
    _fields_ = (
        [(name, _long) for name in ("batch", "query_heads", "kv_heads", "rows", "slots", "head_dim")]
        + [("query", _Tensor), ("key", _Tensor), ("row_position", _pointer), ("row_position_bytes", _bytes)]
        + [
            ("scale", ctypes.c_float),
            ("threshold", ctypes.c_float),
            ("score", _pointer),
            ("score_bytes", _bytes),
        ]
        + [("pairs", _pointer), ("below", _pointer), ("counts_bytes", _bytes)]
        + [("accumulate", _int), ("threads", _int), ("sparsity", _pointer), ("sparsity_bytes", _bytes)]
    )


class _Evict(ctypes.Structure):
    _fields_ = (
        [(name, _long) for name in ("batch", "kv_heads", "slots", "head_dim", "capacity")]
        + [(name, _Tensor) for name in ("key", "value", "key_out", "value_out")]
        + [("score", _pointer), ("score_bytes", _bytes)]
        + [(name, _pointer) for name in ("length", "keep", "sinks", "recent")]
        + [("lengths_bytes", _bytes), ("position_out", _pointer), ("position_bytes", _bytes)]
        + [(name, _int) for name in ("per_head", "merge", "zero_tail", "threads")]
    )


class _Attend(ctypes.Structure):
    _fields_ = (
        [(name, _long) for name in ("batch", "query_heads", "kv_heads", "rows", "slots", "head_dim")]
        + [(name, _Tensor) for name in ("query", "key", "value", "key_cache", "value_cache")]
        + [("length", _pointer), ("count", _pointer), ("lengths_bytes", _bytes)]
        + [("scale", ctypes.c_float), ("result", _Tensor)]
    )


class _Pick(ctypes.Structure):
    _fields_ = [("batch", _long), ("vocab", _long)] + [
        (name, _pointer) for name in ("logits", "token", "best")
    ]


class _Draw(ctypes.Structure):
    _fields_ = [("batch", _long), ("vocab", _long)] + [
        (name, _pointer) for name in ("logits", "settings", "token", "best")
    ]


def _tensor(t: torch.Tensor) -> _Tensor:
    """Describes a tensor [B, heads, slots, D] with contiguous D."""
    room = t.untyped_storage().nbytes() - t.storage_offset() * t.element_size()
    return _Tensor(t.data_ptr() or None, room, DTYPES[t.dtype], *t.stride()[:3])


def _size(t: torch.Tensor) -> int:
    return t.numel() * t.element_size()


class Library:
    """libvlkv on a device: "cuda", or "cpu" to check the tests themselves. Calls use torch's current stream.

    Args:
        path: the library.
        device: where the tensors lie.
        poison: fill each call's workspace with NaN, which reveals reads before writes; else keep one workspace.
    """

    def __init__(self, path: Path, device: str = "cuda", poison: bool = True):
        self.device = device
        self._calls = ctypes.CDLL(str(path))
        self._poison = poison
        self._workspace: torch.Tensor | None = None
        texts = [ctypes.c_char_p, ctypes.c_size_t]
        for op in ("score", "evict", "attend"):
            getattr(self._calls, f"vlkv_{op}_cuda_workspace").restype = _bytes
            if op != "attend":
                getattr(self._calls, f"vlkv_{op}_cpu").argtypes = [_pointer, *texts]
            getattr(self._calls, f"vlkv_{op}_cuda").argtypes = [_pointer, _pointer, _bytes, _pointer, *texts]
        for op in ("pick", "draw"):
            getattr(self._calls, f"vlkv_{op}_cuda").argtypes = [_pointer, _pointer, *texts]

    @property
    def has_cuda(self) -> bool:
        """Whether the library contains the kernels."""
        return bool(self._calls.vlkv_has_cuda())

    def wait(self) -> None:
        """Waits until all queued work is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _memory(self, size: int) -> torch.Tensor:
        if self._poison:
            return torch.full((max(size, 1),), 0xFF, dtype=torch.uint8, device=self.device)
        if self._workspace is None or self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._workspace

    def _call(self, name: str, params: ctypes.Structure, *more: int) -> None:
        message = ctypes.create_string_buffer(500)
        code = getattr(self._calls, name)(ctypes.byref(params), *more, message, len(message))
        if code:
            raise (ValueError if code == 1 else RuntimeError)(message.value.decode())

    @property
    def _stream(self) -> int:
        return torch.cuda.current_stream().cuda_stream

    def _run(self, op: str, params: ctypes.Structure) -> None:
        if self.device == "cpu":
            self._call(f"vlkv_{op}_cpu", params)
            return
        size = getattr(self._calls, f"vlkv_{op}_cuda_workspace")(ctypes.byref(params))
        # named, so that it lives until the work is queued
        memory = self._memory(size)
        self._call(f"vlkv_{op}_cuda", params, memory.data_ptr(), size, self._stream)

    def score(self, query, key, row_position, score, pairs, below, sparsity, *, scale=0.0, threshold=0.01,
              accumulate=False):  # fmt: skip
        """Writes (or adds) score [B, Hkv, C], pairs, below, sparsity [B]; see vlkv/score.h."""
        batch, query_heads, rows, dim = query.shape
        p = _Score(batch, query_heads, key.shape[1], rows, key.shape[2], dim)
        p.query, p.key = _tensor(query), _tensor(key)
        p.row_position, p.row_position_bytes = row_position.data_ptr(), _size(row_position)
        p.scale, p.threshold = scale, threshold
        p.score, p.score_bytes = score.data_ptr(), _size(score)
        p.pairs, p.below, p.counts_bytes = pairs.data_ptr(), below.data_ptr(), _size(pairs)
        p.sparsity, p.sparsity_bytes = sparsity.data_ptr(), _size(sparsity)
        p.accumulate = accumulate
        self._run("score", p)

    def evict(self, key, value, score, counts, key_out, value_out, position, *, per_head=True, merge=False,
              zero_tail=True):  # fmt: skip
        """Writes key_out, value_out [B, Hkv, capacity, D] and position. counts: length, keep, sinks, recent [B]."""
        batch, heads, slots, dim = key.shape
        p = _Evict(batch, heads, slots, dim, key_out.shape[2])
        p.key, p.value, p.key_out, p.value_out = (_tensor(t) for t in (key, value, key_out, value_out))
        p.score, p.score_bytes = score.data_ptr(), _size(score)
        p.length, p.keep, p.sinks, p.recent = (t.data_ptr() for t in counts)
        p.lengths_bytes = _size(counts[0])
        p.position_out, p.position_bytes = position.data_ptr(), _size(position)
        p.per_head, p.merge, p.zero_tail = per_head, merge, zero_tail
        self._run("evict", p)

    def attend(self, query, key, value, key_cache, value_cache, length, count, result, *, scale=0.0):
        """Appends key, value [B, Hkv, S, D] to the caches and writes result [B, Hq, S, D]; see vlkv/attend_rows.h."""
        batch, query_heads, rows, dim = query.shape
        p = _Attend(batch, query_heads, key.shape[1], rows, key_cache.shape[2], dim)
        p.query, p.key, p.value, p.result = (_tensor(t) for t in (query, key, value, result))
        p.key_cache, p.value_cache = _tensor(key_cache), _tensor(value_cache)
        p.length, p.count, p.lengths_bytes = length.data_ptr(), count.data_ptr(), _size(length)
        p.scale = scale
        self._run("attend", p)

    def pick(self, logits, token, best):
        """Writes each prompt's token and largest logit, [B], of logits [B, V] float32; see vlkv/pick.h. CUDA only."""
        params = _Pick(*logits.shape, *(t.data_ptr() for t in (logits, token, best)))
        self._call("vlkv_pick_cuda", params, self._stream)

    def draw(self, logits, settings, token, best):
        """As pick, with settings [B, 4] float64: temperature, top_k, top_p, uniform; see vlkv/draw.h. CUDA only."""
        params = _Draw(*logits.shape, *(t.data_ptr() for t in (logits, settings, token, best)))
        self._call("vlkv_draw_cuda", params, self._stream)
