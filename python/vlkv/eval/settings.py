"""The settings that an evaluation compares: policies at budgets, and the cache that answers a later question."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import msgspec

from vlkv.errors import EvalError
from vlkv.generation.fork import Variant
from vlkv.ops.allocation import check_share
from vlkv.policies.builtin import resolve
from vlkv.policies.policy import Policy, with_recall

KEEPS = ("compressed", "reusable")


@dataclass(frozen=True)
class Setting:
    """One line of a table.

    Fields:
        policy: how the cache is compressed.
        budget: the share of the prompt's cache that is kept.
        keep: the cache that answers the second question, `compressed` or `reusable`; empty if there is no second one.
    """

    policy: Policy
    budget: float
    keep: str = ""

    @property
    def label(self) -> str:
        """The policy's name, and `keep` if there is a second question."""
        return f"{self.policy.name}, {self.keep}" if self.keep else self.policy.name

    @property
    def variant(self) -> Variant:
        """The setting in the form that `Engine.read` needs."""
        return Variant(self.policy, self.budget)

    @property
    def digest(self) -> str:
        """A digest of the policy's fields, which distinguishes policies of the same name."""
        return hashlib.sha256(msgspec.json.encode(asdict(self.policy), order="sorted")).hexdigest()[:16]


FULL = Setting(resolve("full"), 1.0)


def make_settings(
    policies: Sequence[str | Policy], budgets: Sequence[float], turns: int = 1, recall: float | None = None
) -> list[Setting]:
    """Every policy at every budget, in this order; a policy that keeps everything has only the budget 1.

    With `recall` every policy that evicts recalls that share, and its name says so; second questions are then answered
    by the reusable cache alone.

    Raises:
        PolicyError: a policy is unknown, or a budget is outside (0, 1].
        EvalError: there is no policy or no budget.
    """
    if not policies or not budgets:
        raise EvalError(f"no {'budget' if policies else 'policy'} is given")
    found = [_recalling(resolve(policy), recall) for policy in policies]
    shares = [check_share(budget) for budget in budgets]
    keeps: tuple[str, ...] = ("",)
    if turns > 1:
        keeps = KEEPS if recall is None else ("reusable",)
    settings = []
    for policy in found:
        whole = policy.keeps_all
        for keep in ("compressed",) if whole and turns > 1 else keeps:
            settings += [Setting(policy, budget, keep) for budget in ([1.0] if whole else shares)]
    return list(dict.fromkeys(settings))


def _recalling(policy: Policy, share: float | None) -> Policy:
    if share is None or policy.keeps_all:
        return policy
    return replace(with_recall(policy, share), name=f"{policy.name}+recall {share:g}")


def split_names(text: str) -> list[str]:
    """Splits `a,b` into a list, without surrounding blanks and empty names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def split_numbers(text: str) -> list[float]:
    """Parses `1,0.5` as numbers. Raises `EvalError` for anything else."""
    numbers = []
    for name in split_names(text):
        try:
            numbers.append(float(name))
        except ValueError:
            raise EvalError(
                f"budget {name!r} is not a number; shares of the cache look like 0.5,0.2,0.1"
            ) from None
    return numbers
