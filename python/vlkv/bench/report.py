"""A benchmark's figures as one record and as Markdown tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from vlkv.bench.derive import Row, amdahl, ratios, row
from vlkv.bench.measure import Measured
from vlkv.bench.settings import Settings
from vlkv.ops.cores import cpu_facts
from vlkv.ops.native import describe
from vlkv.storage.manifest import Manifest

MIB = 1 << 20
EXTENSIONS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "VNNI": "avx512_vnni",
    "BF16": "avx512_bf16",
    "AMX": "amx_tile",
    "AMX-BF16": "amx_bf16",
    "NEON": "asimd",
    "dot products": "asimddp",
    "I8MM": "i8mm",
    "SVE": "sve",
}
"""Vector extensions that products and attention use, by the flag in `/proc/cpuinfo`."""
CELL = ("prompt tokens", "batch", "new tokens")


@dataclass(frozen=True)
class Own:
    """One of this project's arms.

    Fields:
        label: its name in tables.
        full: the label of the same engine's full cache; None if that was not requested.
        weights: bytes of its decoder's weights; None if byte floors do not apply.
    """

    label: str
    full: str | None
    weights: int | None


def record(
    settings: Settings,
    manifest: Manifest,
    measured: Measured,
    own: Sequence[Own],
    peers: dict[str, dict[str, str]],
    fidelity: Sequence[Row] = (),
) -> dict[str, Any]:
    """Makes the record for the JSON file.

    Args:
        settings: the settings of the benchmark.
        manifest: the engine's manifest.
        measured: the runs.
        own: this project's arms, the first engine's first; the other labels are peers.
        peers: versions by the peer's label.
        fidelity: the rows of `vlkv.bench.fidelity`.
    """
    found: dict[str, Any] = {
        "environment": environment(manifest),
        "settings": asdict(settings),
        "peers": peers,
        "failed": measured.failed,
        "rows": [],
        "against_full": [],
        "amdahl": [],
        "against_peers": [],
        "fidelity": list(fidelity),
    }
    weights = {arm.label: arm.weights for arm in own}
    for cell in measured.cells:
        for label in cell.runs:
            found["rows"].append(row(cell, label, weights.get(label)))
        for arm in own:
            if arm.full is not None and arm.label != arm.full:
                found["amdahl"].append(amdahl(cell, arm.label, arm.full))
            fulls = dict.fromkeys(full for full in (arm.full, own[0].full) if full not in {None, arm.label})
            found["against_full"] += [ratios(cell, arm.label, full) for full in fulls if full is not None]
            others = [other for other in cell.runs if other not in weights]
            found["against_peers"] += [ratios(cell, arm.label, other) for other in others]
    return found


def environment(manifest: Manifest) -> dict[str, Any]:
    """Describes the machine and the versions."""
    text = manifest.text
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "vlkv": version("vlkv"),
        "onnxruntime": version("onnxruntime"),
        "operators": f"{manifest.operators}, {describe()}",
        "backend": manifest.backend,
        "text_model": f"{text.layers} layers, hidden {text.hidden}, {text.kv_heads} KV heads",
    }


def processor() -> str:
    """The processor's name, and which of the vector extensions in `EXTENSIONS` it has."""
    fields = cpu_facts()
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    kinds = [kind for kind, flag in EXTENSIONS.items() if flag in flags]
    return f"{name} ({', '.join(kinds)})" if kinds else name


def markdown(found: dict[str, Any], own: Sequence[Own]) -> str:
    """The record's tables: summary, all arms, ratios to the full cache, Amdahl's bound, fidelity, peers."""
    parts = ["## Summary", _summary(found, own), "## All arms", _arms(found["rows"])]
    if found["against_full"]:
        parts += ["## Times as fast as the full cache", _against(found["against_full"])]
    if found["amdahl"]:
        parts += ["## End to end: what Amdahl's law allows, and what came", _bounds(found["amdahl"])]
    if found["against_peers"]:
        parts += ["## Times as fast as peers", _against(found["against_peers"])]
    if found["fidelity"]:
        parts += [f"## The answer of {own[0].label}, given token by token", _worth(found["fidelity"])]
    lines = [f"- {name}: {_list(versions)}" for name, versions in found["peers"].items()]
    lines += [f"- {name} did not run: {error}" for name, error in found["failed"].items()]
    if lines:
        parts += ["## Peers", "\n".join(lines)]
    return "\n\n".join([*parts, _list(found["environment"])]) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with short numbers, and a dash for None."""
    text = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join(text + [f"| {' | '.join(map(_shown, line))} |" for line in lines])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f}%"


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


def _list(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _summary(found: dict[str, Any], own: Sequence[Own]) -> str:
    """One line per cell: prefill and compression of the first compressed arm, and each arm's time per token."""
    cells: dict[tuple[int, ...], dict[str, Row]] = {}
    for each in found["rows"]:
        cells.setdefault(_cell(each), {})[each["arm"]] = each
    faster = {(_cell(line), line["arm"], line["against"]): line["decode"] for line in found["against_full"]}
    small = [arm for arm in own if arm.label != arm.full]
    shown = (small or own)[0].label
    pairs = [(arm.label, arm.full) for arm in small if arm.full is not None]
    head = [*CELL, "prefill ms", "compression of prefill", *(f"{arm.label} ms/token" for arm in own)]
    head += [f"speed-up, {label}" for label, _ in pairs] + [f"cache of full, {label}" for label, _ in pairs]
    lines: list[list[Any]] = []
    for cell, arms in cells.items():
        first = arms[shown]
        line: list[Any] = [*cell, first["prefill_ms"], _percent(first["compress_ms"] / first["prefill_ms"])]
        line += [arms[arm.label]["token_ms"] for arm in own]
        line += [faster[cell, label, full] for label, full in pairs]
        line += [_percent(arms[label]["cache_bytes"] / arms[full]["cache_bytes"]) for label, full in pairs]
        lines.append(line)
    return table(head, lines)


def _cell(line: Row) -> tuple[int, ...]:
    return line["prompt_tokens"], line["batch"], line["new_tokens"]


def _arms(rows: Sequence[Row]) -> str:
    head = [
        *CELL,
        "arm",
        "first token ms",
        "vision",
        "prefill",
        "compress",
        "ms/token",
        "p95",
        "tokens/s",
        "whole tokens/s",
    ]
    head += ["byte floor ms", "of floor", "GB/s", "whole answer ms", "cache MiB", "peak MiB"]
    names = ["arm", "first_token_ms", "vision_ms", "prefill_ms", "compress_ms"]
    names += [
        "token_ms",
        "token_p95_ms",
        "tokens_per_second",
        "whole_tokens_per_second",
        "floor_ms",
        "over_floor",
    ]
    lines = []
    for line in rows:
        rate = line["bandwidth"]
        ends = [rate and rate / 1e9, line["whole_ms"], _mib(line["cache_bytes"]), _mib(line["peak_bytes"])]
        lines.append([*_cell(line), *(line[name] for name in names), *ends])
    return table(head, lines)


def _bounds(rows: Sequence[Row]) -> str:
    head = [*CELL, "arm", "first token's share", "decoding's share", "decoding faster"]
    head += ["bound", "measured", "of the bound"]
    lines = []
    for line in rows:
        shares = [_percent(line["first_token_share"]), _percent(line["decode_share"])]
        gains = [line["decode_speed_up"], line["bound"], line["gain"], _percent(line["gain_of_bound"])]
        lines.append([*_cell(line), line["arm"], *shares, *gains])
    return table(head, lines)


def _against(rows: Sequence[Row]) -> str:
    head = [*CELL, "arm", "against", "first token", "decoding", "whole answer", "same tokens"]
    names = ("arm", "against", "first_token", "decode", "whole")
    lines = [[*_cell(line), *(line[name] for name in names), _percent(line["same_tokens"])] for line in rows]
    return table(head, lines)


def _worth(rows: Sequence[Row]) -> str:
    head = ["prompt tokens", "arm", "tokens", "perplexity", "first choice too"]
    names = ("prompt_tokens", "arm", "tokens", "perplexity")
    return table(head, [[*(line[name] for name in names), _percent(line["agreement"])] for line in rows])
