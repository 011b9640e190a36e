"""The built-in policies. One line adds another; `docs/policies.md` names the source of each.

Sources: VL-Cache (arXiv 2410.23317), Elastic Cache (arXiv 2407.18121), H2O (arXiv 2306.14048), SnapKV (arXiv
2404.14469), PyramidKV (arXiv 2406.02069), StreamingLLM (arXiv 2309.17453), TGV-KV (arXiv
2606.03075), MixKV (arXiv 2510.20707), KVzip (arXiv 2505.23416) for the probes of `picture-once`, Quest (arXiv
2406.10774) for the pages of `recall-question`.
"""

from __future__ import annotations

from dataclasses import replace

from vlkv.errors import PolicyError, quoted
from vlkv.policies.policy import Policy
from vlkv.policies.recall import Recall

POLICIES = {
    policy.name: policy
    for policy in (
        Policy("full", allocation="all"),
        Policy("vl-cache", rows="post_vision", allocation="sparsity", recent=0.1),
        Policy(
            "elastic",
            rows="all",
            sinks=1,
            recent_tokens=1,
            per_head=False,
            merge="nearest_mean",
            decode="fixed_point",
        ),
        Policy("h2o", rows="all", recent=0.5, per_head=False, decode="lowest"),
        Policy("snapkv", rows="last", pooling="max", kernel=7, keep_observed=True),
        Policy("pyramidkv", rows="last", pooling="max", kernel=7, allocation="pyramid", keep_observed=True),
        Policy("streaming-llm", sinks=4, recent=1.0, per_head=False, decode="sliding"),
        Policy(
            "shared-question",
            rows="post_vision",
            pooling="max",
            kernel=7,
            sinks=1,
            recent=0.1,
            text=0.5,
            per_head=False,
        ),
        Policy(
            "tgv-kv",
            rows="post_vision",
            reduce="weighted",
            allocation="vision",
            sinks=4,
            recent_tokens=1,
            text=1.0,
            per_head=False,
        ),
        Policy("mixkv", rows="last", pooling="mean", kernel=5, diversity="keys", keep_observed=True),
        Policy(
            "picture-once", rows="probe", reduce="max", sinks=1, keep_observed=True, per_head=False, text=0.5
        ),
        Policy(
            "recall-question",
            rows="post_vision",
            pooling="max",
            kernel=7,
            sinks=1,
            recent=0.1,
            text=0.5,
            recall=Recall(0.25),
        ),
    )
}

DEFAULT_POLICY = "shared-question"
"""The policy of a question that names none; `docs/policies.md` gives the reasons."""

AUTO = replace(POLICIES[DEFAULT_POLICY], name="auto")
"""Stands for the policy that `vlkv.policies.auto` takes once a prompt is known; until then it counts as the default."""


def resolve(policy: str | Policy) -> Policy:
    """The policy of that name, or the given policy. Raises `PolicyError`, which lists all names, if it is unknown.

    `auto` gives `AUTO`.
    """
    if isinstance(policy, Policy):
        return policy
    if policy == AUTO.name:
        return AUTO
    if not isinstance(policy, str) or policy not in POLICIES:
        raise PolicyError(f"unknown policy {quoted(policy)}; known: {', '.join(POLICIES)}, {AUTO.name}")
    return POLICIES[policy]
