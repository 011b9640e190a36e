"""Runs a graph directory's graphs in ONNX Runtime, unchanged or after a change, on random numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vlkv.ops.session_options import session_options

ROUNDOFF = 2.0**-24
Arrays = dict[str, np.ndarray]
CALLS = {"prompts": (2, 9, (0, 0)), "chunk": (1, 6, (8,)), "step": (2, 1, (11, 5))}
"""The uses of the one decoder graph: prompts, tokens of the call, and valid slots before it."""
CAPACITY = (24, 20, 28)


def session(path: Path) -> Any:
    """Opens a graph."""
    options = session_options(1, "native")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Returns all outputs by name. Caches are copied first, because a run may write them in place."""
    opened = session(path)
    wanted = {value.name for value in opened.get_inputs()}
    found = opened.run(None, {name: array.copy() for name, array in feeds.items() if name in wanted})
    return dict(zip((value.name for value in opened.get_outputs()), found, strict=True))


def decoder_feeds(manifest: Any, call: str, rng: np.random.Generator, dtype: Any = np.float32) -> Arrays:
    """Returns a decoder's inputs for one of `CALLS`. Of two prompts, the second has two padding rows at the right."""
    text = manifest.text
    batch, tokens, valid = CALLS[call]
    feeds: Arrays = {
        "inputs_embeds": rng.normal(size=(batch, tokens, text.hidden)).astype(np.float32),
        "length": np.tile(np.array(valid, np.int64), (text.layers, 1)),
    }
    # layers hold different numbers of tokens, as after compression
    if call == "step":
        feeds["length"] += np.arange(text.layers)[:, None]
    positions = np.array(valid)[:, None] + np.arange(tokens)
    rows = np.tile(np.arange(max(0, tokens - 3), tokens), (batch, 1))
    if call == "prompts":
        positions[1, -2:] = -1
        rows[1] = [4, 6, -1]
    feeds["position_ids"] = positions
    feeds["row_index"] = rows
    feeds["recall"] = np.zeros(batch, np.int64)
    for layer in range(text.layers):
        shape = (batch, text.kv_heads, CAPACITY[layer], text.head_dim)
        for kind in ("key", "value"):
            array = rng.normal(size=shape).astype(dtype)
            # slots past the valid ones hold arbitrary finite numbers
            feeds[f"{kind}_cache.{layer}"] = array
    return feeds


def valid_slots(feeds: Arrays, layer: int) -> list[slice]:
    """Returns for each prompt the slots of a layer that hold a token after the call."""
    added = (feeds["position_ids"] >= 0).sum(axis=1)
    return [slice(0, int(n)) for n in feeds["length"][layer] + added]


def assert_decoders_agree(first: Arrays, second: Arrays, feeds: Arrays, terms: float = 1500) -> None:
    """Compares the outputs of both: logits, and valid slots of caches and scores.

    On the way to an output, `terms` numbers are added (five dot products of about 100 in each of three layers). Each is
    rounded by 2^-24 of the largest, at random. Both sides have this error.
    """
    assert "logits" in first
    assert first.keys() & second.keys() >= {"logits", "new_key_cache.0", "new_value_cache.2"}
    for name in first.keys() & second.keys():
        mine, theirs = first[name].astype(np.float64), second[name].astype(np.float64)
        assert mine.shape == theirs.shape
        limit = 2 * ROUNDOFF * terms**0.5
        if name == "sparsity":
            # at most one pair in a thousand is too near the threshold to tell
            np.testing.assert_allclose(mine, theirs, atol=1e-3)
        elif name in ("logits",):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=limit * np.abs(theirs).max())
        else:
            layer = int(name.rsplit(".", 1)[1])
            for row, slots in enumerate(valid_slots(feeds, layer)):
                a, b = mine[row][:, slots], theirs[row][:, slots]
                np.testing.assert_allclose(a, b, rtol=0, atol=limit * max(1.0, np.abs(b).max()))


def copied(source: Path, target: Path) -> Path:
    """Returns the same graph directory with hard-linked weights, for changed graphs."""
    target.mkdir()
    for path in source.iterdir():
        os.link(path, target / path.name)
    return target


def changed(folder: Path, name: str, change: Callable[[ir.Model], int]) -> tuple[Path, int]:
    """Loads a graph, changes it and saves it beside the old one. Returns its path and what the change returned."""
    model = ir.load(folder / f"{name}.onnx")
    count = change(model)
    path = folder / f"{name}.changed.onnx"
    path.unlink(missing_ok=True)
    ir.save(model, path)
    return path, count
