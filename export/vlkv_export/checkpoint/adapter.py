"""LoRA adapters (arXiv 2106.09685) as peft writes them: `adapter_config.json` and `adapter_model.safetensors`.

A matrix `[N, K]` becomes W + scale * B A, with A `[r, K]` and B `[N, r]`; scale is alpha / r, of rank-stabilised ones
alpha / sqrt(r).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Merge, Tensor
from vlkv_export.checkpoint.fields import Fields, read_object, show
from vlkv_export.checkpoint.names import Prefixes, canonical
from vlkv_export.checkpoint.safetensors import DTYPES, Entry, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
INNER = "base_model.model."
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base's weights as they are."""
UNSUPPORTED = (
    "modules_to_save",
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "megatron_config",
)
ADVICE = "merge it with peft (merge_and_unload, then save_pretrained) and give the merged folder"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder and configuration."""

    folder: Path
    config: Fields

    def scale(self, module: str, rank: int) -> float:
        """What B A of a module is multiplied by. Raises `CheckpointError` for a rank other than the configured one."""
        wanted = _pattern(self.config, "rank_pattern", module, self.config.integer("r", 8, high=1 << 16))
        if rank != wanted:
            raise CheckpointError(
                f"{self.config.where}: {module} has rank {rank}, the configuration says {wanted}"
            )
        alpha = _pattern(self.config, "alpha_pattern", module, self.config.number("lora_alpha", 8.0))
        return float(alpha / (rank**0.5 if self.config.boolean("use_rslora", False) else rank))


def find_adapter(folder: Path) -> Adapter | None:
    """The adapter of a folder; None without one. Raises `CheckpointError` for one that can't be merged."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    config = Fields(read_object(path), str(path))
    kind, start = config.get("peft_type"), config.get("init_lora_weights")
    base = show(config.get("base_model_name_or_path"))
    said = f"{path}: an adapter of {base}"
    if kind not in (None, "LORA"):
        raise CheckpointError(f"{said} of peft_type {show(kind)} is not supported; {ADVICE}")
    wrong = next((name for name in UNSUPPORTED if config.get(name)), None)
    if wrong is None and config.get("bias") not in (None, "none"):
        wrong = "bias"
    if wrong is None and start is not None and start not in PLAIN_STARTS:
        wrong = "init_lora_weights"
    if wrong is not None:
        raise CheckpointError(f"{said} with {wrong} {show(config.get(wrong))} is not supported; {ADVICE}")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{said} without {WEIGHTS} beside it; save it with peft (safe_serialization=True)"
        )
    return Adapter(folder, config)


def base_folder(adapter: Adapter) -> Path:
    """The folder of the checkpoint that an adapter belongs to: its own, or the one that it names."""
    if (adapter.folder / "config.json").exists():
        return adapter.folder
    named = adapter.config.get("base_model_name_or_path")
    if isinstance(named, str) and named and (Path(named) / "config.json").is_file():
        return Path(named)
    raise CheckpointError(
        f"{adapter.config.where}: its base {show(named)} is no folder of a checkpoint here; put the adapter's files "
        "into the base's folder, or name that folder as base_model_name_or_path"
    )


def read_merges(adapter: Adapter, prefixes: Prefixes, tensors: Mapping[str, Tensor]) -> dict[str, Merge]:
    """What is added to which tensor, by canonical name. Raises `CheckpointError` for a part that fits none."""
    path = adapter.folder / WEIGHTS
    halves: dict[str, dict[str, tuple[str, Entry]]] = {}
    for name, entry in read_header(path).items():
        match = re.fullmatch(rf"(?:{re.escape(INNER)})?(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match is None:
            raise CheckpointError(f"{path}: tensor {show(name)} is no part of a LoRA matrix; {ADVICE}")
        halves.setdefault(match[1], {})[match[2]] = (name, entry)
    merges: dict[str, Merge] = {}
    for module, parts in halves.items():
        place = canonical(f"{module}.weight", prefixes)
        if place is None or place not in tensors:
            raise CheckpointError(f"{path}: {show(module)} is no matrix of this model's graphs; {ADVICE}")
        shape = tensors[place].shape
        if set(parts) != {"A", "B"} or len(shape) != 2:
            raise CheckpointError(f"{path}: {show(module)} has no pair of lora_A and lora_B for a matrix")
        a, b = (_tensor(path, *parts[half]) for half in "AB")
        rank = a.shape[0] if len(a.shape) == 2 else 0
        if not rank or a.shape != (rank, shape[1]) or b.shape != (shape[0], rank):
            raise CheckpointError(
                f"{path}: {show(module)} has lora_A {list(a.shape)} and lora_B {list(b.shape)} for a matrix "
                f"{list(shape)}"
            )
        if place in merges:
            raise CheckpointError(f"{path}: {show(module)} is there twice")
        merges[place] = Merge(adapter.folder, a, b, adapter.scale(module, rank))
    if not merges:
        raise CheckpointError(f"{path} holds no LoRA matrices")
    return merges


def _tensor(path: Path, name: str, entry: Entry) -> Tensor:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {show(name)} has dtype {entry.dtype}; supported: {', '.join(DTYPES)}"
        )
    return Tensor(name, path.name, dtype, entry.shape, entry.offset, entry.length)


def _pattern(config: Fields, name: str, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as in peft; else the default."""
    patterns = config.get(name) or {}
    items: Iterable[tuple[str, Any]] = patterns.items() if isinstance(patterns, dict) else ()
    for pattern, value in items:
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error:
            raise CheckpointError(
                f"{config.where}: {name} has the pattern {show(pattern)}, which is none"
            ) from None
        if found:
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise CheckpointError(f"{config.where}: {name} of {show(pattern)} is {show(value)}")
            return value
    return default
