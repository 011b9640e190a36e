"""Carries the best versions of a run to this machine: they are built, judged and timed as candidates are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkv.errors import TuneError
from vlkv.ops.tuned import processor
from vlkv.storage.files import reason, show
from vlkv.tune.harness import Harness
from vlkv.tune.judge import FUZZ_SECONDS, Judge
from vlkv.tune.report import speedup, summary, write_record
from vlkv.tune.toolchain import Candidate, Toolchain


def transfer(pairs: Sequence[tuple[Path, Path]], folder: Path, fuzz: float = FUZZ_SECONDS) -> dict[str, Any]:
    """Returns each function's speedup over the compiler alone on this processor, and where its version was made.

    A version that is wrong or does not build here has the speedup 1, and the gate that refused it. Writes
    `transfer.json` into `folder`, the output of a run over the same functions.

    Raises:
        TuneError: a version's record is missing or damaged, or a source is wrong here.
    """
    functions = []
    for source, path in pairs:
        place = folder if len(pairs) == 1 else folder / source.stem
        candidate, made_on = _read(place)
        functions.append({"name": source.stem, "from": made_on, **_judged(source, path, candidate, fuzz)})
    found = {"to": processor(), "functions": functions, **summary([one["speedup"] for one in functions])}
    write_record(folder / "transfer.json", found)
    return found


def _read(place: Path) -> tuple[Candidate, str]:
    path = place / "best.json"
    try:
        record = json.loads(path.read_text())
        best = record["best"]
        text = (place / Path(best["text"]).name).read_text()
        return Candidate(best["level"], text, tuple(best["flags"]), best["origin"]), record["processor"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TuneError(f"{show(path)}: {reason(error)}; vlkv tune --source writes it") from error


def _judged(source: Path, path: Path, candidate: Candidate, fuzz: float) -> dict[str, Any]:
    harness = Harness.load(path)
    with tempfile.TemporaryDirectory(prefix="vlkv-tune-") as place:
        toolchain = Toolchain(harness, source, Path(place))
        judge = Judge(harness, toolchain, fuzz=fuzz)
        first = toolchain.build(Candidate("source", source.read_text()))
        if first.path is None:
            raise TuneError(f"{show(source)}: {first.reason}")
        built = toolchain.build(candidate)
        gate, why = judge.right(built) if built.path else ("compile", built.reason)
        if gate or built.path is None:
            return {"speedup": 1.0, "low": 1.0, "high": 1.0, "gate": gate, "reason": why}
        ratio, why = judge.compare(first.path, built.path)
        if ratio is None:
            return {"speedup": 1.0, "low": 1.0, "high": 1.0, "gate": "held-out", "reason": why}
        return dict(zip(("speedup", "low", "high"), speedup(ratio), strict=True))
