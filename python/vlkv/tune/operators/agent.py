"""The language-model agent for operators: it answers with constants and flags, and hears what became of them."""

from __future__ import annotations

import json
import re
from typing import Any

from vlkv.tune.agents import FENCE, MOST_HISTORY, facts_of, prompt_of
from vlkv.tune.endpoint import Ask
from vlkv.tune.harness import Harness
from vlkv.tune.judge import Verdict
from vlkv.tune.operators.constants import FLAGS, Operator
from vlkv.tune.operators.library import LEVEL
from vlkv.tune.proposal import Proposal, State
from vlkv.tune.toolchain import Candidate

OBJECT = re.compile(r"\{[^{}]*\}")
MOST_TEXT = 2000


class ConstantAgent:
    """Each `propose` is one call of the model. Its text can only choose among listed values."""

    name = "agents"

    def __init__(self, ask: Ask, operator: Operator, harness: Harness, processor: str) -> None:
        self.ask, self.operator, self.harness, self.processor = ask, operator, harness, processor
        self._history: list[str] = []

    def propose(self, state: State) -> Proposal:
        """Asks the model; the choice is the first JSON object of its answer, in a fenced block or not."""
        names = {name: sorted(values) for name, values in self.operator.constants.items()}
        prompt = prompt_of(
            LEVEL,
            operator=self.operator.name,
            description=self.harness.description,
            processor=self.processor,
            timed=json.dumps(list(self.harness.timed)),
            constants="\n".join(f"- {name}: {', '.join(map(str, v))}" for name, v in names.items()),
            flags="\n".join(f"- {', or '.join(options)}" for options in FLAGS.values()),
            best=state.best.text.strip(),
            history="\n".join(self._history[-MOST_HISTORY:]) or "nothing yet",
        )
        reply = self.ask(prompt)
        record = facts_of(LEVEL, reply)
        found = OBJECT.search((FENCE.findall(reply.text) or [reply.text])[0])
        if found is None:
            self._history.append("an answer without a JSON object")
            return Proposal(None, "the answer has no JSON object", record)
        return Proposal(Candidate(LEVEL, found.group()[:MOST_TEXT], (), self.name), record=record)

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        """Notes what became of the choice. What held-out inputs said is not told."""
        assert proposal.candidate is not None
        self._note(proposal.candidate.text, verdict.shown or verdict.reason)

    def remember(self, record: dict[str, Any]) -> None:
        """Takes in a record of an earlier run."""
        self._note(record.get("choice", "no choice"), record.get("shown") or record.get("reason", ""))

    def _note(self, text: str, told: str) -> None:
        self._history.append(f"{' '.join(text.split())[:300]}: {told[:160]}")
