"""Language-model agents for operators: one answers with constants and flags, one with a function of the source."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkv.tune.agents import FENCE, MOST_HISTORY, block_of, prompt_of, sampled
from vlkv.tune.endpoint import Ask
from vlkv.tune.harness import Sizes
from vlkv.tune.operators.constants import Choice, Operator, parse
from vlkv.tune.operators.functions import FUNCTIONS, installed
from vlkv.tune.operators.functions import LEVEL as SOURCE
from vlkv.tune.operators.library import LEVEL
from vlkv.tune.proposal import Proposal, State
from vlkv.tune.toolchain import Candidate
from vlkv.tune.verdict import Verdict

OBJECT = re.compile(r"\{[^{}]*\}")
MOST_TEXT = 2000


class ConstantAgent:
    """Each `propose` is one call of the model. Its text can only choose among listed values."""

    name = "agents"

    def __init__(
        self, ask: Ask, operator: Operator, description: str, timed: Sequence[Sizes], processor: str
    ) -> None:
        self.ask, self.operator, self.processor = ask, operator, processor
        self.description, self.timed = description, list(timed)
        self._history: list[str] = []

    def propose(self, state: State) -> list[Proposal]:
        """Asks the model; the choice is the first JSON object of its answer, in a fenced block or not."""
        names = {name: sorted(values) for name, values in self.operator.constants.items()}
        prompt = prompt_of(
            LEVEL,
            operator=self.operator.name,
            description=self.description,
            processor=self.processor,
            timed=json.dumps(self.timed),
            constants="\n".join(f"- {name}: {', '.join(map(str, v))}" for name, v in names.items()),
            flags="\n".join(f"- {', or '.join(options)}" for options in self.operator.flags.values()),
            best=state.best.text.strip(),
            history="\n".join(self._history[-MOST_HISTORY:]) or "nothing yet",
        )
        return sampled(LEVEL, self.ask(prompt, LEVEL), self._candidate, "the answer has no JSON object")

    def _candidate(self, text: str) -> Candidate | None:
        found = OBJECT.search((FENCE.findall(text) or [text])[0])
        if found is None:
            self._history.append("an answer without a JSON object")
            return None
        return Candidate(LEVEL, found.group()[:MOST_TEXT], (), self.name)

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        """Notes what became of the choice. What held-out inputs said is not told."""
        assert proposal.candidate is not None
        self._note(proposal.candidate.text, verdict.shown or verdict.reason)

    def remember(self, record: dict[str, Any]) -> None:
        """Takes in a record of an earlier run."""
        self._note(record.get("choice", "no choice"), record.get("shown") or record.get("reason", ""))

    def _note(self, text: str, told: str) -> None:
        self._history.append(f"{' '.join(text.split())[:300]}: {told[:160]}")


class FunctionAgent:
    """Each `propose` is one call, about the operator's functions in turn. What it answers is compiled.

    The answer's function joins the best choice so far, constants included.
    """

    name = "function-agents"

    def __init__(self, ask: Ask, operator: Operator, sources: Path) -> None:
        self.ask, self.operator, self.sources = ask, operator, sources
        self._told: dict[str, str] = {}
        self._calls = 0
        self._name = ""

    def propose(self, state: State) -> list[Proposal]:
        """Asks the model for one function, in a fenced block."""
        functions = FUNCTIONS[self.operator.name]
        function = functions[self._calls % len(functions)]
        self._calls += 1
        self._name = function.name
        best = parse(self.operator, state.best.text)
        told = self._told.get(function.name, "")
        prompt = prompt_of(
            SOURCE,
            name=function.name,
            text=best.functions.get(function.name) or installed(self.sources, function),
            feedback=f"Your last version: {told}\n\n" if told else "",
        )

        def candidate(text: str) -> Candidate | None:
            block = block_of(text)
            if block is None:
                return None
            replaced = {**best.functions, function.name: block}
            return Candidate(SOURCE, Choice(best.constants, best.flags, replaced).text(), (), self.name)

        return sampled(SOURCE, self.ask(prompt, SOURCE), candidate)

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        """Notes what became of the function. What held-out inputs said is not told."""
        self._told[self._name] = (verdict.shown or verdict.reason)[:160]

    def remember(self, record: dict[str, Any]) -> None:
        """Takes in a record of an earlier run: the next call is about the next function."""
        self._calls += not record.get("sample")
