"""Language-model agents: a guide decides the level, level agents write versions, a tester writes sizes to probe.

Source: ACCLAIM, "Agentic Code Optimization via Compiler-LLM Cooperation", arXiv 2604.04238. Each of n = 1 samples gets
k = 4 rounds of feedback. docs/tune.md says where this departs from the paper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlkv.errors import TuneError
from vlkv.tune.endpoint import Ask, Reply
from vlkv.tune.harness import Harness, Sizes
from vlkv.tune.proposal import Proposal, State
from vlkv.tune.toolchain import Candidate
from vlkv.tune.verdict import Verdict

PROMPTS = Path(__file__).parent / "prompts"
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
ROUNDS = 4
OPEN = re.compile(r"^```[^\n]*\n(.*)", re.DOTALL | re.MULTILINE)
MOST_SHOWN = 24_000
MOST_HISTORY = 20
MOST_PROBES = 16


class Agents:
    """All agents of a run; each `propose` is one call of the model. Call 0 is the tester's.

    After it, a turn is the guide's call and up to `rounds` calls of the level's agent, which hears what became of its
    last version. With `turns`, levels, there is no guide: the agents of these levels work in turn. `processor` and the
    harness's description stand in prompts; held-out sizes never do.
    """

    name = "agents"

    def __init__(
        self,
        ask: Ask,
        harness: Harness,
        processor: str,
        calls: int | None = None,
        rounds: int = ROUNDS,
        turns: Sequence[str] = (),
    ) -> None:
        self.ask, self.harness, self.processor = ask, harness, processor
        self.calls, self.rounds, self.turns = calls, rounds, tuple(turns)
        self.probes: list[Sizes] = []
        self._history: list[str] = []
        self._level = ""
        self._left = 0
        self._feedback = ""
        self._tested = False

    def propose(self, state: State) -> list[Proposal]:
        """Asks one agent."""
        if not self._tested:
            return [self._test(state)]
        if not self._left and not self.turns:
            return [self._guide(state)]
        self._begin_turn()
        self._left -= 1
        return self._work(state)

    def _begin_turn(self) -> None:
        """Goes to the next of `turns` when the calls of a level are used up."""
        if not self._left:
            at = self.turns.index(self._level) + 1 if self._level else 0
            self._level, self._left, self._feedback = self.turns[at % len(self.turns)], self.rounds, ""

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        """Tells the level's agent what became of its version. What held-out inputs said is not told."""
        assert proposal.candidate is not None
        level = proposal.candidate.level
        told = verdict.shown or verdict.reason
        found = "right" if verdict.correct else "wrong"
        self._feedback = f"Your last version is {found}: {told}\n"
        if not verdict.admitted and len(proposal.candidate.text) < MOST_SHOWN // 2:
            self._feedback += f"\n```\n{proposal.candidate.text}\n```\n"
        self._history.append(f"{level}: {found}, {told[:120]}")

    def remember(self, record: dict[str, Any]) -> None:
        """Takes in a record of an earlier run."""
        agent = record.get("agent")
        if isinstance(self.ask, Transcript) and agent and not record.get("sample"):
            self.ask.skip(agent)
        self._tested = True
        if agent == "tester":
            self.probes = record.get("probes", [])
        elif agent == "guide":
            self._level, self._left, self._feedback = record["chosen"], self.rounds, ""
        else:
            if self.turns:
                self._begin_turn()
            self._left = max(self._left - (not record.get("sample")), 0)
            told = record.get("shown") or record.get("reason", "")
            self._history.append(
                f"{self._level}: {'right' if record.get('correct') else 'wrong'}, {told[:120]}"
            )

    def _test(self, state: State) -> Proposal:
        self._tested = True
        sizes = {name: list(ends) for name, ends in self.harness.sizes.items()}
        example = json.dumps([{name: low for name, (low, _) in self.harness.sizes.items()}])
        prompt = prompt_of(
            "tester", source=state.at["source"][0].text, sizes=json.dumps(sizes), example=example
        )
        reply = self.ask(prompt, "tester")
        self.probes = _probes(reply.text, self.harness)
        record = facts_of("tester", reply) | {"probes": self.probes}
        return Proposal(None, f"{len(self.probes)} sizes to probe", record)

    def _guide(self, state: State) -> Proposal:
        left = "Some" if self.calls is None else str(self.calls - state.calls - 1)
        history = "\n".join(self._history[-MOST_HISTORY:]) or "nothing yet"
        reply = self.ask(
            prompt_of(
                "guide",
                levels=", ".join(state.levels),
                source=state.at["source"][0].text,
                history=history,
                left=left,
            ),
            "guide",
        )
        named = [level for level in state.levels if re.search(rf"\b{level}\b", reply.text[:400].lower())]
        tried = sum(line.startswith(level) for level in state.levels for line in self._history)
        self._level = named[0] if named else state.levels[tried // self.rounds % len(state.levels)]
        self._left, self._feedback = self.rounds, ""
        why = "" if named else ", as the answer names none"
        return Proposal(
            None,
            f"next is {self._level}{why}",
            facts_of("guide", reply) | {"chosen": self._level, "named": bool(named)},
        )

    def _work(self, state: State) -> list[Proposal]:
        start = state.start(self._level)
        reply = self.ask(
            prompt_of(
                self._level,
                processor=self.processor,
                flags=" ".join(start.flags),
                prototype=self.harness.prototype(),
                description=self.harness.description or "It has no further description.",
                text=start.text[:MOST_SHOWN],
                feedback=self._feedback,
                probe=f"Sizes that are easy to get wrong: {json.dumps(self.probes)}\n" if self.probes else "",
            ),
            self._level,
        )
        return sampled(self._level, reply, lambda text: self._candidate(text, start.flags))

    def _candidate(self, text: str, flags: tuple[str, ...]) -> Candidate | None:
        block = block_of(text)
        if block is None:
            self._feedback = "Your last answer has no fenced block.\n"
            self._history.append(f"{self._level}: wrong, no fenced block")
            return None
        return Candidate(self._level, block, flags, self.name)


def block_of(text: str) -> str | None:
    """Returns the first fenced block, or what follows a fence that the answer's end left open; None without a fence."""
    found = FENCE.search(text) or OPEN.search(text)
    return None if found is None else found.group(1)


def sampled(
    agent: str,
    reply: Reply,
    candidate: Callable[[str], Candidate | None],
    without: str = "the answer has no fenced block",
) -> list[Proposal]:
    """Returns a proposal for each sample of a reply; `without` is the reason for one that gives no candidate.

    Tokens and seconds stand in the first's record.
    """
    made = []
    for number, text in enumerate((reply.text, *reply.more)):
        record = facts_of(agent, reply) if not number else {"agent": agent, "answer": text}
        found = candidate(text)
        made.append(Proposal(found, "" if found else without, record))
    return made


def prompt_of(name: str, /, **fields: str) -> str:
    """Returns the prompt of that name with its fields filled in."""
    text = (PROMPTS / f"{name}.md").read_text()
    # one pass: what a field holds is not searched again
    return re.sub(r"\{(\w+)\}", lambda found: fields[found.group(1)], text)


def facts_of(agent: str, reply: Reply) -> dict[str, Any]:
    """Returns what the ledger keeps of a reply."""
    return {
        "agent": agent,
        "answer": reply.text,
        "tokens_in": reply.tokens_in,
        "tokens_out": reply.tokens_out,
        "ask_seconds": reply.seconds,
    }


def _probes(text: str, harness: Harness) -> list[Sizes]:
    """Returns the sizes in an answer that lie in the harness's ranges; an answer without any is an empty list."""
    found = FENCE.findall(text) or [text]
    try:
        listed = json.loads(found[0])
    except ValueError:
        return []
    made = []
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict) and set(item) == set(harness.sizes):
            inside = all(
                type(item[name]) is int and low <= item[name] <= high
                for name, (low, high) in harness.sizes.items()
            )
            if inside and item not in made:
                made.append(item)
    return made[:MOST_PROBES]


class Transcript:
    """Answers from a file of JSON lines with `text`, in order, instead of a model; an `Ask`.

    A line with `agent` answers that agent only. Lines that name agents may be fewer than the calls: an agent without
    further lines gets an empty answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[dict[str, Any]] = [
            json.loads(line) for line in path.read_text().splitlines() if line
        ]
        self._left = list(self._lines)

    def __call__(self, _: str, agent: str) -> Reply:
        """Returns the agent's next answer. Raises `TuneError` after the last of a transcript that names no agents."""
        line = self._next(agent)
        if line is None:
            if any("agent" in one for one in self._lines):
                return Reply("", 0, 0, 0.0)
            raise TuneError(f"{self.path}: the transcript has only {len(self._lines)} answers")
        return Reply(line["text"], line.get("tokens_in", 0), line.get("tokens_out", 0), 0.0)

    def skip(self, agent: str) -> None:
        """Leaves out the answer that an earlier run was given."""
        self._next(agent)

    def _next(self, agent: str) -> dict[str, Any] | None:
        for at, line in enumerate(self._left):
            if line.get("agent", agent) == agent:
                return self._left.pop(at)
        return None
