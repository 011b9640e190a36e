"""Measures the scales of int8 caches: the decoder runs on random tokens, on this machine's CPU.

Keys have a few channels that are much larger than the others, and each channel has about the same size for all tokens
(KIVI, arXiv 2402.02750). So each channel gets a scale of its own, and no text is needed to find it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vlkv.errors import EngineError
from vlkv.storage.files import reason
from vlkv.storage.manifest import TextFacts

TOKENS = 256
HEADROOM = 2.5
"""How much larger a key or value may be than the largest that was measured, before it is cut: cuts cost more than
coarser codes. On a text with a real language model, perplexity was 18.83 with float16, 19.96 with a headroom of 1.1,
19.02 with 1.5 and 18.72 with 2.5."""
LARGEST = 127


def draw_tokens(text: TextFacts, bos: int | None, seed: int = 0) -> NDArray[np.int64]:
    """The tokens `[S]` that are run: a text's first token, where it has one, and random ones."""
    count = min(TOKENS, text.max_positions)
    ids = np.random.default_rng(seed).integers(0, text.vocab, count)
    if bos is not None:
        ids[0] = bos
    return ids


def measured_scales(
    graph: Path, text: TextFacts, rows: NDArray[np.float32]
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Scales `[Hkv,1,D]` of each layer's keys and values.

    Args:
        graph: a decoder that runs on the CPU, in float16.
        text: the model's sizes.
        rows: embeddings `[S,hidden]` of the tokens.

    Raises:
        EngineError: ONNX Runtime can't run it, or keys or values are not finite.
    """
    names = [f"{kind}_cache.{layer}" for layer in range(text.layers) for kind in ("key", "value")]
    empty = np.zeros((1, text.kv_heads, len(rows), text.head_dim), np.float16)
    given = {
        "inputs_embeds": rows[np.newaxis],
        "position_ids": np.arange(len(rows))[np.newaxis],
        "row_index": np.zeros((1, 0), np.int64),
        "length": np.zeros((text.layers, 1), np.int64),
    } | dict.fromkeys(names, empty)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        found = session.run([f"new_{name}" for name in names], given)
    except Exception as error:
        raise EngineError(
            f"--kv-dtype int8: the decoder can't be run to measure its caches: {reason(error)}"
        ) from None
    largest = [np.abs(array.astype(np.float32)).max(axis=(0, 2), keepdims=True)[0] for array in found]
    if not all(np.isfinite(array).all() for array in largest):
        raise EngineError("--kv-dtype int8: keys or values of this checkpoint overflow float16; use float8")
    scales = [np.where(array > 0, array * (HEADROOM / LARGEST), 1.0).astype(np.float32) for array in largest]
    return list(zip(scales[::2], scales[1::2], strict=True))
