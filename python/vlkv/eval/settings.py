"""What an evaluation compares: policies at budgets, and in conversations what a later question is answered from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec

from vlkv.errors import EvalError
from vlkv.generation.fork import Variant
from vlkv.ops.allocation import check_share
from vlkv.policies.builtin import resolve
from vlkv.policies.policy import Policy

KEEPS = ("compressed", "reusable")


@dataclass(frozen=True)
class Setting:
    """One line of a table.

    Fields:
        policy: how the cache is compressed.
        budget: the share of the prompt's cache that is kept.
        keep: what the second question is answered from; empty where there is none.
    """

    policy: Policy
    budget: float
    keep: str = ""

    @property
    def label(self) -> str:
        """The policy's name, and what is kept for a second question."""
        return f"{self.policy.name}, {self.keep}" if self.keep else self.policy.name

    @property
    def variant(self) -> Variant:
        """The same for `Engine.read`."""
        return Variant(self.policy, self.budget)

    @property
    def digest(self) -> str:
        """Tells policies of the same name and different fields apart."""
        return hashlib.sha256(msgspec.json.encode(asdict(self.policy), order="sorted")).hexdigest()[:16]


FULL = Setting(resolve("full"), 1.0)


def make_settings(
    policies: Sequence[str | Policy], budgets: Sequence[float], turns: int = 1
) -> list[Setting]:
    """Every policy at every budget, in this order; one that keeps all has 1 alone.

    Raises:
        PolicyError: an unknown policy, or a budget outside (0, 1].
        EvalError: no policy or no budget.
    """
    if not policies or not budgets:
        raise EvalError(f"no {'budget' if policies else 'policy'} is given")
    found = [resolve(policy) for policy in policies]
    shares = [check_share(budget) for budget in budgets]
    keeps = KEEPS if turns > 1 else ("",)
    settings = []
    for policy in found:
        whole = policy.keeps_all
        for keep in ("compressed",) if whole and turns > 1 else keeps:
            settings += [Setting(policy, budget, keep) for budget in ([1.0] if whole else shares)]
    return list(dict.fromkeys(settings))


def split_names(text: str) -> list[str]:
    """`a,b` as a list; blanks around names are left out, and so are empty names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def split_numbers(text: str) -> list[float]:
    """`1,0.5` as numbers; anything else is an `EvalError`."""
    numbers = []
    for name in split_names(text):
        try:
            numbers.append(float(name))
        except ValueError:
            raise EvalError(
                f"budget {name!r} is no number; shares of the cache look like 0.5,0.2,0.1"
            ) from None
    return numbers
