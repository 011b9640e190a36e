"""Compares the adopted decoder with the original in ONNX Runtime, on a prompt and on a token after it.

This verifies the parts of a graph that adoption does not interpret, such as masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vlkv.errors import CheckpointError
from vlkv.storage.files import reason
from vlkv_export.adopt.decoder import EMBEDS
from vlkv_export.adopt.facts import Source

PROMPT = 24
TOLERANCE = {"float32": 1e-3, "float16": 3e-2}
"""Differences, relative to the largest logit, that the order of sums may cause. Wrong positions or masks cause
differences as large as the logits."""
CODES = 0.1
"""The same if products round activations too (`MatMulNBits`): kernels for one row and for many round differently."""
TYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
"""Types of tensors that ONNX Runtime takes from NumPy, which has no bfloat16."""
Floats = NDArray[np.float32]


def compare(source: Source, folder: Path, table: Floats, dtype: str, codes: bool, seed: int = 0) -> float:
    """Returns the largest difference of logits, relative to the largest logit.

    Args:
        source: the original.
        folder: the graph directory.
        table: rows of the embedding table for the tokens `tokens(source, seed)`.
        dtype: the dtype of the caches.
        codes: whether the graph has quantised weights.
        seed: the seed of the tokens.

    Raises:
        CheckpointError: the logits differ by more than rounding, or a graph's tensors are neither float32 nor float16.
    """
    ids = tokens(source, seed)
    before, after = _original(source, ids, table), _adopted(source, folder, table)
    largest = max(float(np.abs(one).max()) for one in before)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True)) / (largest or 1.0)
    most = max(TOLERANCE[dtype], CODES if codes else 0.0)
    if not worst <= most:
        raise CheckpointError(
            f"{source.graph}: logits of the adopted graph differ from the original's by {worst:.2g} of the largest; "
            f"at most {most:g} is rounding. A mask or positions were not understood"
        )
    return worst


def tokens(source: Source, seed: int = 0) -> NDArray[np.int64]:
    """The random tokens `[PROMPT + 1]` that both graphs run."""
    return np.random.default_rng(seed).integers(0, source.vocab, PROMPT + 1)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_reuse = False  # onnxruntime-genai's float16 graphs name equal sizes that are not
    try:
        return ort.InferenceSession(str(path), options)
    except Exception as error:  # of several classes in ONNX Runtime
        raise CheckpointError(f"{path}: ONNX Runtime does not open it: {reason(error)}") from None


def _numpy(path: Path, value: ort.NodeArg) -> type[np.floating[Any]]:
    """The NumPy type of a graph's input or output."""
    if value.type not in TYPES:
        raise CheckpointError(
            f"{path}: {value.name!r} is a {value.type}; compared are {' and '.join(TYPES)}. "
            "--no-check leaves the comparison out"
        )
    return TYPES[value.type]


def _original(source: Source, ids: NDArray[np.int64], table: Floats) -> list[Floats]:
    session = _session(source.graph)
    inputs = {value.name: value for value in session.get_inputs()}
    names = [pattern % layer for layer in range(source.layers) for pattern in source.past]
    made = [pattern % layer for layer in range(source.layers) for pattern in source.present]
    given_as = {name: _numpy(source.graph, inputs[name]) for name in (names[0], EMBEDS) if name in inputs}
    _numpy(source.graph, next(value for value in session.get_outputs() if value.name == source.logits))
    empty = np.zeros((1, source.kv_heads, 0, source.head_dim), given_as[names[0]])
    caches = dict.fromkeys(names, empty)
    found, done = [], 0
    for part, rows in ((ids[:PROMPT], table[:PROMPT]), (ids[PROMPT:], table[PROMPT:])):
        end = done + len(part)
        given = {
            "input_ids": part[np.newaxis],
            EMBEDS: rows[np.newaxis].astype(given_as.get(EMBEDS, np.float32)),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(done, end)[np.newaxis],
            "use_cache_branch": np.array([done > 0]),
        }
        results = session.run(
            [source.logits, *made], {name: value for name, value in given.items() if name in inputs} | caches
        )
        found.append(results[0][0, -1].astype(np.float32))
        caches = dict(zip(names, results[1:], strict=True))
        done = end
    return found


def _adopted(source: Source, folder: Path, table: Floats) -> list[Floats]:
    path = folder / "decoder.onnx"
    session = _session(path)
    inputs = {value.name: value for value in session.get_inputs()}
    shape = (1, source.kv_heads, PROMPT + 1, source.head_dim)
    stored = _numpy(path, inputs["key_cache.0"])
    kinds = [(kind, layer) for layer in range(source.layers) for kind in ("key", "value")]
    caches = {f"{kind}_cache.{layer}": np.zeros(shape, stored) for kind, layer in kinds}
    found, done = [], 0
    for part in (table[:PROMPT], table[PROMPT:]):
        end = done + len(part)
        given = {
            EMBEDS: part[np.newaxis],
            "position_ids": np.arange(done, end)[np.newaxis],
            "row_index": np.zeros((1, 0), np.int64),
            "length": np.full((source.layers, 1), done),
        }
        results = session.run(["logits", *(f"new_{name}" for name in caches)], given | caches)
        found.append(results[0][0].astype(np.float32))
        caches = dict(zip(caches, results[1:], strict=True))
        done = end
    return found
