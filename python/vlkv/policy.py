"""Policies are data: one frozen record says which rows are observed, how the budget is split, what stays.

Sources: VL-Cache (arXiv 2410.23317), Elastic Cache (arXiv 2407.18121).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlkv.errors import PolicyError


@dataclass(frozen=True, slots=True)
class Policy:
    """How a prompt's cache is compressed after prefill.

    Fields:
        name: what it is called in results.
        rows: which prompt rows are observed: none, those after the last image token (the last `window`
            where there is no picture), all, or the last `window`.
        window: rows observed where `rows` is `last`, or where a prompt has no picture.
        threshold: p of the sparsity measure; an attention weight under p times its row's largest counts as zero.
        allocation: how the budget is split over layers: by sparsity, or equally.
        rule: `exact` keeps the total equal to the budget after clipping, `paper` is the published formula.
        floor: the smallest share of a prompt that a layer keeps.
        sinks: first tokens that always stay.
        recent: share of a layer's count that always stays at the prompt's end.
        per_head: one selection for each KV head, or one shared by all.
        merge: what becomes of the evicted: `none` drops them, `nearest_mean` averages them into kept neighbours.
    """

    name: str
    rows: Literal["none", "post_vision", "all", "last"] = "none"
    window: int = 32
    threshold: float = 0.01
    allocation: Literal["sparsity", "equal"] = "equal"
    rule: Literal["exact", "paper"] = "exact"
    floor: float = 0.01
    sinks: int = 0
    recent: float = 0.0
    per_head: bool = True
    merge: Literal["none", "nearest_mean"] = "none"


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("full"),
        Policy("vl-cache", rows="post_vision", allocation="sparsity", recent=0.1),
    )
}


def resolve(policy: str | Policy) -> Policy:
    """The policy of that name, or the given one; an unknown name is a `PolicyError` that lists the known ones."""
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise PolicyError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    return POLICIES[policy]


def default_budget(policy: Policy) -> float:
    """The budget where none is given: a tenth, all for `full`."""
    return 1.0 if policy.name == "full" else 0.1


def check_budget(budget: float, policy: Policy | None = None) -> float:
    """The budget as a float; outside (0, 1], or under 1 for `full`, it is a `PolicyError`."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0.0 < budget <= 1.0:
        raise PolicyError(f"budget {budget!r} is outside (0, 1]; 0.1 keeps a tenth of the prompt's cache")
    if policy is not None and policy.name == "full" and budget != 1.0:
        raise PolicyError(
            f"budget {budget!r} does not go with policy 'full', which keeps all; give 1, or another policy"
        )
    return float(budget)
