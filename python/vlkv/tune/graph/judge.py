"""The judge of the graph level: an engine's logits must be the plain graph's before its time is looked at."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from vlkv.bench.prompts import make_prompts
from vlkv.bench.settings import QUESTION, Budget
from vlkv.bench.timing import EngineArm
from vlkv.engine import Engine
from vlkv.errors import TuneError
from vlkv.inputs.layouts import usual_picture
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.storage.files import hash_file, show
from vlkv.storage.manifest import Manifest
from vlkv.tune.graph.builder import GraphBuilder
from vlkv.tune.ratio import Ratio, ratio
from vlkv.tune.toolchain import Candidate
from vlkv.tune.verdict import RIGHT, Known, Verdict

PROMPTS, FORCED = (0, 7, 100), 4
"""Tokens of the compared prompts beside a picture and a question, and of the answers that are forced on them."""
SHARES = (1.0, 0.5)
"""Shares of the cache with which they are compared: the policy `full`, and the default policy."""
TOLERANCE = 2e-3
"""Difference of logits, relative to the largest, that another order of sums may cause."""
LONG, ANSWER, PAIRS = 256, 9, 12
"""Tokens of the timed prompts and answers, and the number of pairs."""


class GraphJudge:
    """Judges choices of passes.

    The oracle is the engine of float32 ONNX functions if the engine is float32 altogether; else, as functions have no
    other dtypes, the engine without optional passes.
    """

    def __init__(self, builder: GraphBuilder, pairs: int = PAIRS) -> None:
        self.builder, self.pairs = builder, pairs
        self.probes: list[Any] = []
        self.rng = np.random.default_rng()
        self._known = Known("the graphs are those of an earlier candidate")
        plain = [*builder.words, "--passes", ""] if builder.words else ["--operators", "functions"]
        oracle = builder.engine(plain)
        if oracle.path is None:
            raise TuneError(f"{show(builder.graphs)}: {oracle.reason}")
        self._oracle = oracle.path

    def judge(self, candidate: Candidate, best: Path) -> tuple[Verdict, Path | None]:
        """Returns the verdict on a candidate and its engine; `best` is the engine to be faster than."""
        begin = time.perf_counter()
        built = self.builder.build(candidate)

        def verdict(gate: str | None, why: str, correct: bool = False, found: Ratio | None = None) -> Verdict:
            return Verdict(gate, why, correct, found, built.seconds, time.perf_counter() - begin)

        if built.path is None:
            return verdict("compile", built.reason), None
        graphs = _hash(built.path)
        earlier = self._known.verdict(graphs, built.seconds, time.perf_counter() - begin)
        if earlier is not None:
            return earlier, None
        why = self.wrong(built.path)
        self._known.note(graphs, "inputs" if why else RIGHT)
        if why:
            return verdict("inputs", why), None
        found = self.compare(best, built.path)
        if found.faster:  # a second look, as one of a hundred equals seems faster
            found = self.compare(best, built.path)
        why = f"takes {found.value:.3f} of the best's time ({found.low:.3f} to {found.high:.3f})"
        return verdict(None if found.faster else RIGHT, why, True, found), built.path

    def know(self, engine: Path) -> None:
        """Notes an engine that is right, so that the same graphs are not timed again."""
        self._known.note(_hash(engine))

    def wrong(self, engine: Path) -> str:
        """Compares logits at the ends of fresh prompts, and of answers forced on them, with the oracle's.

        Returns the first fault, or "".
        """
        with Engine.load(engine, verify=False) as ours, Engine.load(self._oracle, verify=False) as theirs:
            for share in SHARES:
                arms = [EngineArm(one, Budget(share), DEFAULT_POLICY) for one in (ours, theirs)]
                for more in PROMPTS:
                    length = _length(ours.manifest, more)
                    asked = make_prompts(ours.manifest, length, 1, int(self.rng.integers(1 << 31)))[0]
                    tokens = self.rng.choice(asked.prompt.token_ids[-QUESTION:], FORCED).tolist()
                    steps = zip(*(arm.forced(asked, tokens) for arm in arms), strict=True)
                    apart = max(float(np.abs(a - b).max() / (np.abs(b).max() or 1.0)) for a, b in steps)
                    if not apart <= TOLERANCE:
                        return (
                            f"after a prompt of {length} tokens with {share:g} of the cache, logits differ from the "
                            f"plain graph's by {apart:.2g} of the largest; at most {TOLERANCE:g} is rounding"
                        )
        return ""

    def compare(self, best: Path, candidate: Path) -> Ratio:
        """Returns the ratio of the times of prefills and decode steps together, or that of one if it is slower."""
        firsts, steps = [], []
        with Engine.load(best, verify=False) as old, Engine.load(candidate, verify=False) as new:
            arms = [EngineArm(one, Budget(1.0), DEFAULT_POLICY) for one in (old, new)]
            length = _length(old.manifest, LONG)
            for number in range(-1, self.pairs):  # the first pair warms up
                asked = make_prompts(old.manifest, length, 1, number + 1)
                order = (0, 1) if self.rng.random() < 0.5 else (1, 0)
                runs = {at: arms[at].run(asked, ANSWER) for at in order}
                if number >= 0:
                    firsts.append((runs[0].first, runs[1].first))
                    steps.append((float(np.median(runs[0].steps)), float(np.median(runs[1].steps))))
        slower = [one for one in (ratio(firsts), ratio(steps)) if one.low > 1]
        return max(slower, key=lambda one: one.value) if slower else ratio(firsts + steps)


def _length(manifest: Manifest, more: int) -> int:
    """Tokens of a prompt: the usual picture, the question and `more`, as far as the model's positions allow."""
    picture = sum(len(layout.token_ids) for layout in usual_picture(manifest.image))
    return min(picture + QUESTION + 1 + more, manifest.text.max_positions - ANSWER)


def _hash(engine: Path) -> str:
    return "".join(hash_file(path) for path in sorted(engine.glob("*.onnx")))
