"""Rotary embedding frequencies of both generations of configuration, as transformers computes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Rope
from vlkv_export.checkpoint.fields import Fields

TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
DEFAULT_THETA = 10_000.0


def read_rope(text: Fields, head_dim: int, max_positions: int) -> Rope:
    """Read the rotary embedding of a `text_config`: `rope_parameters`, or `rope_theta` and `rope_scaling`.

    `dynamic` equals `default` up to `max_position_embeddings` positions, and no more are ever run, so its factor has
    no effect here. `longrope` has one set of frequencies for the trained positions, and no more are ever run, and
    another set beyond them. Raises `CheckpointError`, which names the type, for unsupported ones.
    """
    values: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        if text.child(name).values:
            values = dict(text.child(name).values)
    where = f"{text.where}: rope_parameters"
    if values.get("rope_theta") is None:
        values["rope_theta"] = text.get("rope_theta")
    original = text.get("original_max_position_embeddings")
    if original is not None:
        values["original_max_position_embeddings"] = original
    rope = Fields(values, where)
    kind = rope.string("rope_type", rope.string("type", "default"))
    if kind not in TYPES:
        raise CheckpointError(f"{where}: RoPE type {kind!r} is not supported; supported: {', '.join(TYPES)}")
    partial = rope.number("partial_rotary_factor", text.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise CheckpointError(f"{where}: partial_rotary_factor {partial:g} is not supported; only 1.0 is")
    theta = rope.number("rope_theta", DEFAULT_THETA, above=1.0)
    try:
        with np.errstate(all="ignore"):
            frequencies = _frequencies(theta, head_dim)
            factor, positions = 1.0, None
            if kind == "linear":
                frequencies = frequencies / np.float32(rope.number("factor"))
            elif kind == "llama3":
                frequencies = _llama3(rope, frequencies, max_positions)
            elif kind == "yarn":
                frequencies, factor = _yarn(rope, theta, head_dim, max_positions)
            elif kind == "longrope":
                positions = rope.integer("original_max_position_embeddings", high=1 << 30)
                frequencies, factor = _longrope(rope, theta, head_dim, max_positions / positions)
    except ArithmeticError as error:
        raise CheckpointError(f"{where} can't be computed: {error}") from None
    if not (np.isfinite(frequencies).all() and math.isfinite(factor)):
        raise CheckpointError(f"{where} gives frequencies that are not finite")
    frequencies.flags.writeable = False
    return Rope(frequencies, factor, positions)


def _powers(theta: float, head_dim: int) -> np.ndarray:
    exponent = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    return np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)


def _frequencies(theta: float, head_dim: int) -> np.ndarray:
    return np.float32(1.0) / _powers(theta, head_dim)


def _llama3(rope: Fields, frequencies: np.ndarray, max_positions: int) -> np.ndarray:
    factor = np.float32(rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    original = rope.integer("original_max_position_embeddings", max_positions)
    wavelength = np.float32(2 * math.pi) / frequencies
    long, short = wavelength > np.float32(original / low), wavelength < np.float32(original / high)
    scaled = np.where(long, frequencies / factor, frequencies)
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * scaled / factor + smooth * scaled
    return np.where(~short & ~long, between, scaled).astype(np.float32)


def _longrope(rope: Fields, theta: float, head_dim: int, scale: float) -> tuple[np.ndarray, float]:
    """The frequencies inside of the trained positions; `scale` is how many times more the model has."""
    short, numbers = rope.get("short_factor"), head_dim // 2
    if not isinstance(short, list) or len(short) != numbers:
        raise rope.fail("short_factor", f"{numbers} numbers, one for each two of head_dim {head_dim}")
    where = f"{rope.where}: short_factor"
    factors = [Fields({"": value}, where).number("") for value in short]
    scale, trained = (
        rope.number("factor", scale),
        rope.integer("original_max_position_embeddings", high=1 << 30),
    )
    attention = 1.0 if scale <= 1 or trained == 1 else math.sqrt(1 + math.log(scale) / math.log(trained))
    frequencies = np.float32(1.0) / (np.array(factors, np.float32) * _powers(theta, head_dim))
    return frequencies, rope.number("attention_factor", attention)


def _mscale(scale: float, by: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * by * math.log(scale) + 1.0


def _yarn(rope: Fields, theta: float, head_dim: int, max_positions: int) -> tuple[np.ndarray, float]:
    original = rope.integer("original_max_position_embeddings", max_positions)
    factor = rope.number("factor", max_positions / original)
    attention = rope.get("attention_factor")
    if attention is not None:
        attention = rope.number("attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        anything = {"above": -1e30}
        numerator = _mscale(factor, rope.number("mscale", **anything))
        attention = numerator / _mscale(factor, rope.number("mscale_all_dim", **anything))
    else:
        attention = _mscale(factor)

    def dimension(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    fast = rope.number("beta_fast", above=-1e30) if rope.get("beta_fast") else 32.0
    slow = rope.number("beta_slow", above=-1e30) if rope.get("beta_slow") else 1.0
    if fast <= 0 or slow <= 0:
        raise CheckpointError(
            f"{rope.where}: beta_fast and beta_slow are {fast:g} and {slow:g}; both must be above 0"
        )
    low, high = dimension(fast), dimension(slow)
    if rope.boolean("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    powers = _powers(theta, head_dim)
    steps = np.arange(head_dim // 2, dtype=np.float32)
    ramp = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = 1 - ramp
    inverse = np.float32(1.0) / powers
    interpolated = np.float32(1.0) / (np.float32(factor) * powers)
    return (interpolated * (1 - keep) + inverse * keep).astype(np.float32), float(attention)
