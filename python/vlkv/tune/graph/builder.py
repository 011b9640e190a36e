"""Builds engines of choices of passes, by `vlkv build` in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vlkv.errors import TuneError
from vlkv.storage import manifest as manifests
from vlkv.storage.files import show
from vlkv.tune.graph.choices import PASSES, passes_of
from vlkv.tune.limits import Limits, run_limited
from vlkv.tune.operators.constants import parse
from vlkv.tune.toolchain import Built, Candidate

LIMITS = Limits(seconds=1200, memory=0, file=1 << 20)
RUN = "from vlkv.cli.main import main; main()"


class GraphBuilder:
    """Makes engines of one graph directory in `folder`; `words` are options of `vlkv build` that all have."""

    def __init__(self, graphs: Path, words: Sequence[str], folder: Path) -> None:
        self.graphs, self.words, self.folder = graphs, list(words), folder
        self._count = 0

    def build(self, candidate: Candidate) -> Built:
        """Builds the engine of a candidate, whose text is a choice of `PASSES`."""
        try:
            passes = passes_of(parse(PASSES, candidate.text))
        except TuneError as error:
            return Built(None, str(error))
        return self.engine([*self.words, "--passes", ",".join(passes)])

    def engine(self, words: Sequence[str]) -> Built:
        """Builds an engine with the given options; without one the reason is the builder's last line."""
        begin = time.perf_counter()
        target = self.folder / f"e{self._count}"
        self._count += 1
        command = [sys.executable, "-c", RUN, "-q", "build", str(self.graphs.resolve()), "-o", target.name]
        ended = run_limited([*command, "--link", *words], self.folder, LIMITS)
        seconds = time.perf_counter() - begin
        if ended.code == 0:
            return Built(target, "", seconds)
        lines = ended.text.strip().splitlines() or ["vlkv build ends without a word"]
        return Built(None, lines[-1][:300], seconds)

    def lower(self, _candidate: Candidate, level: str) -> str:
        """Raises `TuneError`: below this level are the operators, which are tuned by themselves."""
        raise TuneError(f"the graph level has no level {level} below it")


def options_of(engine: Path) -> list[str]:
    """Returns the options of `vlkv build` that made an engine, as its manifest has them.

    Raises:
        EngineError: it is no engine directory.
        TuneError: it is not for ONNX Runtime on CPUs with native operators.
    """
    manifest = manifests.read(engine)
    if manifest.kind != "engine" or manifest.backend != "onnxruntime" or manifest.operators != "native":
        raise TuneError(
            f"{show(engine)} has no passes to choose; vlkv build GRAPHS --backend onnxruntime makes such engines"
        )
    chosen = {
        "--weights": (manifest.weights, "float32"),
        "--prompt-precision": (manifest.prompt_precision, manifests.default_precision(manifest.weights)),
        "--kv-dtype": (manifest.cache_dtype, "float32"),
    }
    return [
        word
        for name, (value, default) in chosen.items()
        if value not in (None, default)
        for word in (name, str(value))
    ]
