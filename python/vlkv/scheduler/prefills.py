"""The prompts in prefill: which prompt begins, which one continues, how many tokens it runs, and which lane it uses.

A part of a prompt runs between two decode steps. While answers run, prefill takes `SHARE` times as long as their
steps, averaged over more than one part, for each prompt that is in prefill or could be: beside one long prompt, a token
takes 1 + `SHARE` times as long as without it. If many requests wait, they are prefilled first, since steps of a few
answers are as long as steps of many: several parts then run between two steps, for `BRIEF_SECONDS` at most. The number
of tokens of a part follows from the duration of the last ones.

A prompt is brief if it takes no longer than `BRIEF_STEPS` steps. It does not wait for its share, and there is a step
every `BRIEF_SECONDS` while it is in prefill: so many tokens of an answer take at most about twice as long beside it. To
slow it down would delay its answer, and those behind it, without a gain for the running ones, whose later tokens would
wait instead. Steps make up for it at the rate of one share before another prompt is brief, so that a stream of brief
prompts slows running answers no more than one long prompt does.

The oldest and the shortest prompt take turns, and one that begins beside others has the next turn, unless another one
has jumped in since the oldest one's last part. So a short prompt waits for the part that runs, seldom for one more, and
a long one goes on whatever arrives. Another prompt begins only if it is less than half as long as what is left of each
prompt in prefill: prompts of equal length run one after the other, and their caches are not all alive at once.

A request of a higher priority begins first, and also beside prompts of lower ones, whatever its length. Only the
prompts of the highest priority take turns, but every fourth part belongs to the oldest prompt of all. A request in the
queue gains one priority level every `AGEING` seconds, so none waits forever.

The whole caches of prompts in prefill may lie in memory that running answers need for their later tokens only. When
that memory runs out, decode steps wait until a prompt has been compressed. A prompt begins only if this is not
expected; and all answers fit at their full lengths beside each other, so a wait always ends.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import monotonic

import numpy as np

from vlkv.backend.cache import Cache
from vlkv.generation.chunks import GRAIN
from vlkv.scheduler.lanes import Lanes
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.plan import Plan

SHARE = 1.5
"""Seconds of prefill per second of decode steps, for each prompt that waits, while answers run."""
IDLE_SECONDS = 0.05
"""Duration of a part if no answer runs: a prompt that arrives then waits that long."""
BRIEF_STEPS = 50
"""A prompt is brief if it takes no longer than so many steps, with the brief ones that steps have not made up for."""
BRIEF_SECONDS = 0.15
"""The most seconds between two steps while a brief prompt is in prefill, but for the part that runs then."""
MOST = 4
"""Prompts in prefill at once."""
PASSES = 16
"""How many later requests may overtake one that does not fit into the memory yet."""
AGEING = 5.0
"""Seconds in the queue that count as much as one priority level."""


class Prefills:
    """Schedules prefill; the module's docstring has the rules.

    Args:
        lanes: receive the caches.
        plan: the memory that caches may occupy.
        chunk: the most tokens of a part.
        equal: whether all parts have `chunk` tokens, for operators that round once per part.

    Attributes:
        running: the prompts in prefill, in the order in which they began.
    """

    def __init__(self, lanes: Lanes, plan: Plan, chunk: int, equal: bool) -> None:
        self.running: list[Pending] = []
        self._lanes, self._plan, self._chunk, self._equal = lanes, plan, chunk, equal
        self._debt = self._ahead = 0.0
        self._share = SHARE
        self._turn = 0
        self._jumped = False
        self._token_seconds = self._step_seconds = self._since = 0.0
        self._full = False

    def choose(self, queue: deque[Pending], answers: list[Pending]) -> Pending | None:
        """Moves the request that may begin now from the queue to `running`; None if there is none."""
        free_lanes = self._lanes.lanes - len(answers) - len(self.running)
        self._share = SHARE * max(1, self._wanting(queue, free_lanes))
        if not queue or len(self.running) >= MOST or free_lanes <= 0:
            return None
        now = monotonic()
        head = max(queue, key=lambda one: one.priority + int((now - one.ticket.submitted) / AGEING))
        fits = self._fitting(queue, answers)
        if self.running:
            least = min(other.left for other in self.running)
            most = max(other.priority for other in self.running)
            fits = [one for one in fits if one.priority > most or 2 * one.left < least]
        elif head in fits:
            fits = [head]
        elif head.passed >= PASSES:
            return None
        if not fits:
            return None
        found = min(fits, key=lambda one: (-one.priority, one.left))
        if found is not head:
            head.passed += 1
        if self.running and not self._jumped:  # the next part is the shortest prompt's
            self._turn -= self._turn % 2
            self._jumped = True
        seconds = found.left * self._token_seconds
        found.brief = 0 < seconds <= BRIEF_STEPS * self._step_seconds - self._ahead
        queue.remove(found)
        self.running.append(found)
        return found

    def _fitting(self, queue: deque[Pending], answers: list[Pending]) -> list[Pending]:
        """The requests that fit into the memory: into what is free now, and at their full lengths."""
        free = self.free(answers)
        lanes = self._plan.room - sum(one.lane_bytes for one in (*answers, *self.running))
        to_come = sum(one.lane_bytes - one.held_bytes for one in answers)
        step_bytes = sum(one.step_bytes for one in answers)
        steps_a_token = (
            self._token_seconds / (self._share * self._step_seconds) if self._step_seconds else 0.0
        )
        fits = []
        for one in queue:
            growth = min(to_come, int(one.left * steps_a_token * step_bytes))
            if one.lane_bytes <= lanes and one.lane_bytes + one.prefill_bytes + growth <= free:
                fits.append(one)
        return fits

    def _wanting(self, queue: deque[Pending], free_lanes: int) -> int:
        """Prompts in prefill and those that could be; one that needs a single part delays no other and is left out."""
        could = [*self.running, *islice(queue, max(0, free_lanes))]
        short = sum(one.left <= GRAIN for one in could)
        return len(could) - min(short, 1)

    def free(self, answers: list[Pending]) -> int:
        """Bytes that neither running answers, with their next tokens, nor prompts in prefill hold."""
        used = sum(one.held_bytes for one in answers)
        used += sum(one.lane_bytes + one.prefill_bytes for one in self.running)
        return self._plan.room - used

    def steps_wait(self, answers: list[Pending]) -> bool:
        """Whether prefill runs on before the next step of the answers.

        So it is while that step needs memory that the prompts in prefill hold, while one of them is brief, and while
        several wait and have not had their share.
        """
        self._full = bool(self.running) and self.free(answers) < 0
        behind = bool(self.running) and self._share > SHARE and self._debt < 0
        return self._full or (
            self._since < BRIEF_SECONDS and (behind or any(one.brief for one in self._first()))
        )

    def _first(self) -> list[Pending]:
        """The prompts of the highest priority."""
        most = max((one.priority for one in self.running), default=0)
        return [one for one in self.running if one.priority == most]

    def next(self) -> Pending | None:
        """The prompt whose part runs now; None if decode steps come first."""
        if not self.running:
            return None
        first = self._first()
        if self._debt > 0 and not self._full:
            return min((one for one in first if one.brief), key=lambda one: one.left, default=None)
        self._turn = (self._turn + 1) % 4
        if self._turn % 2:
            return min(first, key=lambda one: one.left)
        self._jumped = False
        return min(first if self._turn else self.running, key=lambda one: one.ticket.submitted)

    def tokens(self, one: Pending, step_seconds: float) -> int:
        """How many of its tokens to run: as many as take its share of a step, or `IDLE_SECONDS` if no answer runs."""
        if self._equal:
            return self._chunk
        known = one.token_seconds or self._token_seconds
        if not known:
            return min(GRAIN, self._chunk)
        seconds = 0.0 if one.brief else self._share * step_seconds
        wanted = int((seconds or IDLE_SECONDS) / known)
        return min(max(wanted - wanted % GRAIN, GRAIN), self._chunk)

    def spent(self, one: Pending, seconds: float, answers: bool) -> None:
        """Counts a part that has run; while answers run, their steps have to pay for it."""
        self._token_seconds = one.token_seconds or self._token_seconds
        self._since += seconds
        if not answers:
            self.idle()
        elif one.brief:
            self._ahead += seconds
        else:
            self._debt += seconds

    def stepped(self, seconds: float) -> None:
        """Counts a decode step."""
        self._step_seconds, self._since = seconds, 0.0
        self._debt = max(-self._share * seconds, self._debt - self._share * seconds)
        self._ahead = max(0.0, self._ahead - SHARE * seconds)

    def idle(self) -> None:
        """No answer runs, so prefill delays no one."""
        self._debt = self._ahead = 0.0

    def remove(self, one: Pending) -> None:
        """Removes a prompt that has joined the running answers."""
        self.running.remove(one)

    def drop(self, one: Pending) -> None:
        """Removes a prompt and releases everything that it holds."""
        one.close()
        if one.lane >= 0:
            self._lanes.release(one.lane)
        self.remove(one)

    def take(self, one: Pending, place: int) -> Cache:
        """Assigns a lane: `place`, behind the running answers, to a prompt that joins them after this part.

        A cache that is kept whole is written from the first token on, so it gets the first free lane.
        """
        if one.sequence.kept_whole:
            held = {other.lane for other in self.running}
            place = next(lane for lane in range(place, self._lanes.lanes) if lane not in held)
        else:
            self.vacate(place, one)
        one.lane = place
        return self._lanes.one(place)

    def vacate(self, place: int, one: Pending) -> None:
        """Frees lane `place` for `one`, which joins the answers; a prompt in prefill there moves to another lane."""
        for other in self.running:
            if other is one or other.lane != place or other.view is None:
                continue
            held = {each.lane for each in self.running}
            spare, length = one.lane, np.zeros_like(other.view.length[:, 0])
            if spare < 0:
                spare = next(lane for lane in range(place, self._lanes.lanes) if lane not in held)
            elif one.sequence.cache is not None:
                length = one.sequence.cache.length[:, 0]
            self._lanes.exchange(place, other.view.length[:, 0], spare, length)
            self._lanes.point(other.view, spare)
            other.lane = spare
            if one.lane >= 0:
                one.lane = place
