"""What a plan allows, told before anyone asks: the longest prompt and the answers at once under each policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlkv.errors import MemoryLimitError, VlkvError
from vlkv.generation.question import MAX_NEW_TOKENS
from vlkv.inputs.layouts import usual_picture
from vlkv.inputs.prompt import Prompt
from vlkv.policies.builtin import POLICIES
from vlkv.policies.policy import Policy, default_budget
from vlkv.scheduler.plan import Plan, show
from vlkv.storage.image_facts import takes_pictures
from vlkv.storage.manifest import Manifest

TEXT_TOKENS = 64
"""Of the text in a usual request, beside its picture."""


@dataclass
class Request:
    """A request that no one has made: what a `Plan` has to know of one."""

    prompt: Prompt
    policy: Policy
    budget: float
    max_new_tokens: int


@dataclass(frozen=True)
class Allowance:
    """Of one policy, at its default budget.

    Fields:
        policy: its name.
        longest: tokens of the longest prompt with `MAX_NEW_TOKENS` new ones; 0 for none.
        at_once: how many usual requests run at once; 0 where not even one does.
    """

    policy: str
    longest: int
    at_once: int


def usual(manifest: Manifest) -> int:
    """Tokens of a usual prompt: a picture of the tower's own size where there is a tower, and `TEXT_TOKENS`."""
    return sum(len(layout.token_ids) for layout in usual_picture(manifest.image)) + TEXT_TOKENS


def _content(manifest: Manifest) -> str:
    """What a usual prompt holds."""
    return f"a picture and {TEXT_TOKENS}" if takes_pictures(manifest.image) else f"{TEXT_TOKENS}"


def allowances(plan: Plan, manifest: Manifest) -> list[Allowance]:
    """What the plan allows under each policy."""
    return [_allowance(plan, manifest, policy) for policy in POLICIES.values()]


def _allowance(plan: Plan, manifest: Manifest, policy: Policy) -> Allowance:
    new = min(MAX_NEW_TOKENS, manifest.text.max_positions // 2)
    text = not takes_pictures(manifest.image)
    low, high = 0, manifest.text.max_positions - new
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits(plan, request(policy, middle, new, text)) else (low, middle - 1)
    asked = request(policy, usual(manifest), new, text)
    at_once = 0
    if _fits(plan, asked):
        each = plan.lane_bytes(asked)  # 0 where all lanes are allocated at the start
        at_once = min(plan.slots, (plan.room - plan.prefill_bytes(asked)) // each) if each else plan.slots
    return Allowance(policy.name, low, at_once)


def request(policy: Policy, length: int, new: int, text: bool = False) -> Request:
    """A request of that many tokens, of no meaning, under a policy's default budget; `text` has no picture."""
    none = np.zeros(0, np.int64)
    prompt = Prompt("", np.zeros(length, np.int64), none, -1)
    return Request(prompt, policy, default_budget(policy, length, text), new)


def check_plan(plan: Plan, manifest: Manifest, policy: Policy, chosen: bool = False) -> None:
    """Refuses a plan under which a usual request can never run.

    Args:
        plan: of the server.
        manifest: of the engine.
        policy: where a request names none.
        chosen: whether its sizes were given; then any prompt that can run is enough.

    Raises:
        MemoryLimitError: with what the request needs.
    """
    new = min(MAX_NEW_TOKENS, manifest.text.max_positions // 2)
    length = 1 if chosen else min(usual(manifest), manifest.text.max_positions - new)
    try:
        plan.check(request(policy, length, new, not takes_pictures(manifest.image)))
    except VlkvError as error:
        what = "no request" if chosen else f"no request of {_content(manifest)} tokens of text"
        raise MemoryLimitError(f"{what} could ever run: {error}") from None


def _fits(plan: Plan, asked: Request) -> bool:
    try:
        plan.check(asked)
    except VlkvError:
        return False
    return True


def lines(plan: Plan, manifest: Manifest) -> Sequence[str]:
    """The same, to be read."""
    tokens, found = usual(manifest), allowances(plan, manifest)
    said = [f"{plan.slots} answers at once at most, caches to {show(plan.memory)}"]
    groups: dict[tuple[int, int], list[str]] = {}
    for one in found:
        groups.setdefault((one.longest, one.at_once), []).append(one.policy)
    for (longest, at_once), names in groups.items():
        said.append(
            f"{', '.join(names)}: prompts to {longest} tokens; {at_once} at once of {tokens} tokens "
            f"({_content(manifest)}) and {MAX_NEW_TOKENS} new ones"
        )
    return said
