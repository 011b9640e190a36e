"""A benchmark's figures as one record, and as Markdown tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlkv.bench.derive import Row, amdahl, ratios, row
from vlkv.bench.measure import Measured
from vlkv.bench.settings import Settings
from vlkv.manifest import Manifest
from vlkv.native import describe

FULL = "full cache"
MIB = 1 << 20


def record(
    settings: Settings,
    manifest: Manifest,
    measured: Measured,
    labels: Sequence[str],
    weights: int | None,
    peers: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """Everything for the JSON file.

    Args:
        settings: what was asked for.
        manifest: the engine's.
        measured: the runs.
        labels: of the engine's own arms; the other labels are peers.
        weights: bytes of the decoder's weights; None where floors mean nothing.
        peers: versions by the peer's label.
    """
    found: dict[str, Any] = {
        "environment": environment(manifest, weights),
        "settings": asdict(settings),
        "peers": peers,
        "failed": measured.failed,
        "rows": [],
        "against_full": [],
        "amdahl": [],
        "against_peers": [],
    }
    for cell in measured.cells:
        for label in cell.runs:
            found["rows"].append(row(cell, label, weights if label in labels else None))
        for label in (label for label in labels if label != FULL and FULL in cell.runs):
            found["against_full"].append(ratios(cell, label, FULL))
            found["amdahl"].append(amdahl(cell, label, FULL))
        for label in labels:
            others = [other for other in cell.runs if other not in labels]
            found["against_peers"] += [ratios(cell, label, other) for other in others]
    return found


def environment(manifest: Manifest, weights: int | None) -> dict[str, Any]:
    """Where this was measured."""
    text = manifest.text
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "vlkv": version("vlkv"),
        "onnxruntime": version("onnxruntime"),
        "operators": f"{manifest.operators}, {describe()}",
        "backend": manifest.backend,
        "text_model": f"{text.layers} layers, hidden {text.hidden}, {text.kv_heads} KV heads",
        "decoder_weight_bytes": weights,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown(found: dict[str, Any], labels: Sequence[str]) -> str:
    """The record's tables: a summary, every arm, Amdahl's bound, peers."""
    parts = ["## Summary", _summary(found, labels), "## All arms", _arms(found["rows"])]
    if found["amdahl"]:
        parts += ["## End to end: what Amdahl's law allows, and what came", _bounds(found["amdahl"])]
    if found["against_peers"]:
        parts += ["## Times as fast as peers", _against(found["against_peers"])]
    lines = [f"- {name}: {_list(versions)}" for name, versions in found["peers"].items()]
    lines += [f"- {name} did not run: {error}" for name, error in found["failed"].items()]
    if lines:
        parts += ["## Peers", "\n".join(lines)]
    return "\n\n".join([*parts, _list(found["environment"])]) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers short, a dash for None."""
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


def _summary(found: dict[str, Any], labels: Sequence[str]) -> str:
    """A line a cell: the last compressed arm tells prefill and compression, each arm its time of a token."""
    cells: dict[tuple[int, int], dict[str, Row]] = {}
    for each in found["rows"]:
        cells.setdefault((each["prompt_tokens"], each["batch"]), {})[each["arm"]] = each
    faster = {(r["prompt_tokens"], r["batch"], r["arm"]): r["decode"] for r in found["against_full"]}
    small = [label for label in labels if label != FULL]
    shown = small[0] if small else labels[0]
    pairs = small if FULL in labels else []
    head = ["prompt tokens", "batch", "prefill ms", "compression of prefill"]
    head += [f"{label} ms/token" for label in labels] + [f"speed-up, {label}" for label in pairs]
    head += [f"cache of full, {label}" for label in pairs]
    lines: list[list[Any]] = []
    for (length, batch), arms in cells.items():
        first = arms[shown]
        line: list[Any] = [length, batch, first["prefill_ms"]]
        line.append(_percent(first["compress_ms"] / first["prefill_ms"]))
        line += [arms[label]["token_ms"] for label in labels]
        line += [faster[length, batch, label] for label in pairs]
        line += [_percent(arms[label]["cache_bytes"] / arms[FULL]["cache_bytes"]) for label in pairs]
        lines.append(line)
    return table(head, lines)


def _arms(rows: Sequence[Row]) -> str:
    head = [
        "prompt tokens",
        "batch",
        "arm",
        "first token ms",
        "vision",
        "prefill",
        "compress",
        "ms/token",
        "p95",
    ]
    head += ["byte floor ms", "of floor", "GB/s", "whole answer ms", "cache MiB", "peak MiB"]
    names = ["prompt_tokens", "batch", "arm", "first_token_ms", "vision_ms", "prefill_ms", "compress_ms"]
    names += ["token_ms", "token_p95_ms", "floor_ms", "over_floor"]
    lines = []
    for line in rows:
        rate = line["bandwidth"]
        ends = [rate and rate / 1e9, line["whole_ms"], _mib(line["cache_bytes"]), _mib(line["peak_bytes"])]
        lines.append([*(line[name] for name in names), *ends])
    return table(head, lines)


def _bounds(rows: Sequence[Row]) -> str:
    head = ["prompt tokens", "batch", "arm", "first token's share", "decoding's share", "decoding faster"]
    head += ["bound", "measured", "of the bound"]
    lines = []
    for line in rows:
        shares = [_percent(line["first_token_share"]), _percent(line["decode_share"])]
        gains = [line["decode_speed_up"], line["bound"], line["gain"], _percent(line["gain_of_bound"])]
        lines.append([line["prompt_tokens"], line["batch"], line["arm"], *shares, *gains])
    return table(head, lines)


def _against(rows: Sequence[Row]) -> str:
    head = [
        "prompt tokens",
        "batch",
        "arm",
        "against",
        "first token",
        "decoding",
        "whole answer",
        "same tokens",
    ]
    names = ("prompt_tokens", "batch", "arm", "against", "first_token", "decode", "whole")
    return table(head, [[*(line[name] for name in names), _percent(line["same_tokens"])] for line in rows])
