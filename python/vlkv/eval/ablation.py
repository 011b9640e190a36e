"""The ablation of VL-Cache: policies that differ in one respect, as data.

It covers the experiments that the paper's reviewers requested: the two parts separately, the sensitivity to p, the
published clipping against the exact total, and each policy's cache hit rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlkv.eval.settings import FULL, Setting
from vlkv.eval.summary import Line
from vlkv.ops.allocation import check_share
from vlkv.policies.builtin import POLICIES
from vlkv.policies.policy import Policy

THRESHOLDS = (0.001, 0.003, 0.01, 0.03, 0.1)
LAYERS = {"equal": "equal layers", "sparsity": "layers by sparsity"}
ROWS = {"all": "all rows", "post_vision": "post-vision rows"}


@dataclass(frozen=True)
class Part:
    """One table: its caption and the policies that it compares."""

    title: str
    policies: tuple[Policy, ...]

    def lines(self, lines: Sequence[Line]) -> list[Line]:
        """The lines of this part's policies, out of all lines."""
        names = [policy.name for policy in self.policies]
        return [line for name in names for line in lines if line.policy == name]


def parts() -> tuple[Part, ...]:
    """The tables of the ablation."""
    base = POLICIES["vl-cache"]
    crossed = tuple(
        replace(base, name=f"{layers}, {observed}", allocation=allocation, rows=rows)  # type: ignore[arg-type]
        for allocation, layers in LAYERS.items()
        for rows, observed in ROWS.items()
    )
    sensitive = tuple(replace(base, name=f"p = {p:.1%}", threshold=p) for p in THRESHOLDS)
    rules = (
        replace(base, name="exact total", rule="exact"),
        replace(base, name="paper's clipping", rule="paper"),
    )
    return (
        Part("The two parts of vl-cache apart", crossed),
        Part("vl-cache's threshold p", sensitive),
        Part("vl-cache's total after clipping", rules),
        Part("Cache hit rate of each policy", tuple(POLICIES.values())),
    )


def ablation_settings(budgets: Sequence[float]) -> list[Setting]:
    """Every policy of every part at every budget."""
    shares = [check_share(budget) for budget in budgets]
    policies = [policy for part in parts() for policy in part.policies if not policy.keeps_all]
    return [FULL, *(Setting(policy, budget) for policy in policies for budget in shares)]
