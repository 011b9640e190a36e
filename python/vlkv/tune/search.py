"""The proposer without a language model: a seeded evolutionary search over flags, pass pipelines and alignments."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlkv.tune import llvm
from vlkv.tune.proposal import Proposal, State
from vlkv.tune.toolchain import Candidate
from vlkv.tune.verdict import Verdict

CHOICES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("-O3",), ("-O2",), ("-O1",)),
    ((), ("-mprefer-vector-width=128",), ("-mprefer-vector-width=256",), ("-mprefer-vector-width=512",)),
    # reassociation keeps NaN and infinities; -ffast-math does not. A reciprocal is wrong so rarely that random inputs
    # may miss it. Both are left out
    ((), ("-fno-trapping-math",), ("-fno-signed-zeros", "-fno-trapping-math", "-fassociative-math")),
    ((), ("-funroll-loops",), ("-funroll-all-loops",), ("-fno-unroll-loops",)),
    ((), ("-fvect-cost-model=unlimited",), ("-fvect-cost-model=very-cheap",), ("-fno-tree-vectorize",)),
    ((), ("-fno-tree-loop-distribute-patterns",)),
    ((), ("-fsplit-loops", "-funswitch-loops"), ("-fno-split-loops", "-fno-unswitch-loops")),
    ((), ("-fgraphite-identity", "-floop-nest-optimize")),
    ((), ("-ftree-loop-distribution",), ("-fno-ivopts",)),
    ((), ("-fvariable-expansion-in-unroller",)),
    ((), ("-fno-if-conversion", "-fno-if-conversion2")),
    ((), ("-fno-schedule-insns2",), ("-fschedule-insns", "-fsched-pressure")),
    ((), ("-fno-tree-pre",), ("-fno-gcse",)),
    ((), ("-fprefetch-loop-arrays",)),
    ((), ("-falign-loops=32",), ("-falign-loops=64",)),
    ((), ("-fomit-frame-pointer", "-fno-stack-protector")),
    ((), ("--param=max-unroll-times=4",), ("--param=max-unroll-times=16",)),
    ((), ("--param=max-completely-peeled-insns=400",)),
    ((), ("--param=vect-epilogues-nomask=0",), ("--param=vect-partial-vector-usage=2",)),
)
LOOP_PASSES = ("licm", "loop-rotate", "loop-reduce")
LABEL = re.compile(r"^\.L\d+:$", re.MULTILINE)
FRESH = 0.25


class Search:
    """Mutates the fastest right choice of flags, with a share of fresh ones; at lower levels, passes and alignments.

    The level is drawn: its chance is its share of the search space times the share of its versions that were admitted.
    With `turns`, levels, they are taken in turn instead. `function` is part of the seed: of several functions each gets
    draws of its own.
    """

    name = "search"

    def __init__(
        self,
        seed: int = 0,
        base: tuple[str, ...] = ("-march=native",),
        turns: Sequence[str] = (),
        function: str = "",
    ) -> None:
        self.seed, self.base, self.turns = (seed, zlib.crc32(function.encode())), base, tuple(turns)
        self._tried: Counter[str] = Counter()
        self._admitted: Counter[str] = Counter()
        self._genes = np.zeros(len(CHOICES), dtype=int)
        self._seen: set[tuple[int, ...]] = {tuple(self._genes)}

    def propose(self, state: State) -> list[Proposal]:
        """Draws the level, then a version of it. Call n of a seed draws from a generator of its own: a run resumes."""
        rng = np.random.default_rng((*self.seed, state.calls))
        level = self._level(state.levels, rng)
        if level == "source":
            genes = self._draw(rng)
            flags = tuple(
                flag for gene, options in zip(genes, CHOICES, strict=True) for flag in options[gene]
            )
            text = state.at["source"][0].text
            made = Candidate(level, text, (*flags, *self.base), self.name)
            return [Proposal(made, record={"genes": [int(g) for g in genes]})]
        start = state.start(level)
        if level == "ir":
            return [Proposal(Candidate(level, start.text, (pipeline(rng),), self.name))]
        return [Proposal(Candidate(level, aligned(start.text, rng), start.flags, self.name))]

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        """Moves to flags that were admitted."""
        if proposal.candidate is not None:
            self._count(proposal.candidate.level, verdict.admitted)
        if verdict.admitted and "genes" in proposal.record:
            self._genes = np.array(proposal.record["genes"])

    def remember(self, record: dict[str, Any]) -> None:
        """Takes in a record of an earlier run: its flags are not drawn again, and are the parent's if admitted."""
        self._count(record["level"], record["admitted"])
        if "genes" in record:
            self._seen.add(tuple(record["genes"]))
            if record.get("admitted"):
                self._genes = np.array(record["genes"])

    def _count(self, level: str, admitted: bool) -> None:
        self._tried[level] += 1
        self._admitted[level] += admitted

    def _level(self, levels: Sequence[str], rng: np.random.Generator) -> str:
        if self.turns:
            return self.turns[self._tried.total() % len(self.turns)]
        weights = np.array([_share(level, levels) for level in levels])
        weights *= [(self._admitted[level] + 1) / (self._tried[level] + 2) for level in levels]
        return str(rng.choice(levels, p=weights / weights.sum()))

    def _draw(self, rng: np.random.Generator) -> Any:
        sizes = np.array([len(options) for options in CHOICES])
        for _ in range(100):
            if rng.random() < FRESH:
                genes = np.where(rng.random(len(CHOICES)) < 0.3, rng.integers(0, sizes), 0)
            else:
                genes = self._genes.copy()
                for at in rng.choice(len(CHOICES), size=int(rng.integers(1, 4)), replace=False):
                    genes[at] = rng.integers(0, sizes[at])
            if tuple(genes) not in self._seen:
                break
        self._seen.add(tuple(genes))
        return genes


def aligned(text: str, rng: np.random.Generator) -> str:
    """Returns assembly with one to three more local labels aligned to 16, 32 or 64 bytes."""
    labels = list(LABEL.finditer(text))
    if not labels:
        return text
    chosen = sorted(rng.choice(len(labels), size=min(len(labels), int(rng.integers(1, 4))), replace=False))
    for at in reversed(chosen):
        place = labels[at].start()
        text = f"{text[:place]}\t.p2align {int(rng.integers(4, 7))}\n{text[place:]}"
    return text


def pipeline(rng: np.random.Generator) -> str:
    """Returns a pass pipeline for `opt`: the usual one, with passes of our choice before or after it."""
    drawn = [str(rng.choice(list(llvm.passes()))) for _ in range(int(rng.integers(0, 5)))]
    drawn = [f"loop({name})" if name in LOOP_PASSES else name.split("<")[0] for name in drawn]
    drawn.insert(int(rng.integers(0, len(drawn) + 1)), f"default<O{int(rng.integers(2, 4))}>")
    wrapped = [name if name.startswith("default") else f"function({name})" for name in drawn]
    return f"-passes={','.join(wrapped)}"


def _share(level: str, levels: Sequence[str]) -> float:
    """Most of what there is to choose are flags of the source."""
    return 0.8 if level == "source" else 0.2 / (len(levels) - 1)
