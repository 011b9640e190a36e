"""Quantised checkpoints: which kinds are opened as they are, and what their configuration says of the codes.

AWQ (arXiv 2306.00978) and GPTQ (arXiv 2210.17323) of 4 bits, and compressed-tensors' int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.fields import Fields, show

Method = Literal["awq", "gptq", "int8"]
SUPPORTED = "AWQ (gemm) and GPTQ of 4 bits, compressed-tensors' int8"
GIVE = f"supported: {SUPPORTED}; or give the float32, float16 or bfloat16 checkpoint that it was made from"
PARTS: Mapping[Method, tuple[str, ...]] = {
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales"),
    "int8": ("weight", "weight_scale"),
}
"""What a matrix is stored as; GPTQ may have `g_idx` too."""


@dataclass(frozen=True)
class Scheme:
    """How the matrices of a checkpoint are stored.

    Fields:
        method: the layout of codes.
        group: inputs that share a scale; 0 for all of them.
        offset: what is added to a stored zero.
        notes: what the configuration says and the engine will not do.
    """

    method: Method
    group: int
    offset: int = 0
    notes: tuple[str, ...] = ()


def read_scheme(*parts: Fields) -> Scheme | None:
    """The scheme that the first of the configurations with a `quantization_config` names; None without one.

    Raises `CheckpointError` for one that is not supported, by its name.
    """
    for part in parts:
        if "quantization_config" in part:
            given = part.get("quantization_config")
            if not isinstance(given, dict):
                raise CheckpointError(
                    f"{part.where}: quantization_config is {show(given)}, no object; {GIVE}"
                )
            return _scheme(Fields(given, f"{part.where}: quantization_config"))
    return None


def _scheme(config: Fields) -> Scheme:
    method = config.get("quant_method")
    if method in ("awq", "gptq"):
        _need(config, "bits", 4, 4 if method == "awq" else None)
        group = config.get("group_size")
        group = 128 if group is None else group
        if (
            isinstance(group, bool)
            or not isinstance(group, int)
            or (group != -1 and not 1 <= group <= 1 << 20)
        ):
            raise CheckpointError(f"{config.where}: group_size is {show(group)}; it must be -1 or at least 1")
        group = max(group, 0)
        if method == "awq":
            version = config.get("version") or config.get("format") or "gemm"
            if str(version).lower() != "gemm" or config.get("backend") == "llm-awq":
                raise CheckpointError(
                    f"{config.where}: awq of version {show(version)} is not supported; {GIVE}"
                )
            _need(config, "zero_point", True, True)
            return Scheme("awq", group)
        form = config.get("checkpoint_format") or config.get("format") or "gptq"
        if form not in ("gptq", "gptq_v2"):
            raise CheckpointError(f"{config.where}: gptq of format {show(form)} is not supported; {GIVE}")
        return Scheme("gptq", group, offset=int(form == "gptq"))
    if method == "compressed-tensors":
        return _compressed(config)
    raise CheckpointError(f"{config.where}: quant_method {show(method)} is not supported; {GIVE}")


def _compressed(config: Fields) -> Scheme:
    form = config.get("format")
    groups = config.get("config_groups")
    named = f"{config.where}: compressed-tensors of format {show(form)}"
    if not isinstance(groups, dict) or len(groups) != 1 or not isinstance(next(iter(groups.values())), dict):
        raise CheckpointError(f"{named} with config_groups that are not one group is not supported; {GIVE}")
    (group,) = groups.values()
    weights = group.get("weights") or {}
    kind = {name: weights.get(name) for name in ("type", "num_bits", "strategy")}
    wanted = weights.get("symmetric", True) and kind["strategy"] in ("channel", "group", "tensor")
    plain = form in ("int-quantized", "naive-quantized") and (kind["type"], kind["num_bits"]) == ("int", 8)
    if not plain or not wanted or config.get("kv_cache_scheme") is not None:
        said = ", ".join(f"{name} {show(value)}" for name, value in kind.items())
        raise CheckpointError(f"{named} ({said}) is not supported; {GIVE}")
    notes: tuple[str, ...] = ()
    if group.get("input_activations") is not None:
        notes = (f"{config.where}: input_activations is left out; activations stay float32",)
    return Scheme("int8", int(weights.get("group_size") or 0) if kind["strategy"] == "group" else 0, 0, notes)


def _need(config: Fields, name: str, wanted: object, default: object) -> None:
    value = config.get(name)
    if (default if value is None else value) != wanted:
        method = show(config.get("quant_method"))
        raise CheckpointError(f"{config.where}: {method} with {name} {show(value)} is not supported; {GIVE}")
