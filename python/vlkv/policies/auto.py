"""The policy `auto`: which built-in policy a prompt gets. `docs/policies.md` has the tables behind the rule.

a picture or a video, one question                  the default policy
a picture or a video, more questions to come        picture-once, where the engine can run it
text of at most `SHORT_TEXT` tokens                 vl-cache
longer text                                         the default policy
"""

from __future__ import annotations

from dataclasses import replace

from vlkv.backend.base import Backend
from vlkv.errors import PolicyError
from vlkv.inputs.prompt import Prompt
from vlkv.policies.builtin import AUTO, DEFAULT_POLICY, POLICIES
from vlkv.policies.observe import check_fit
from vlkv.policies.policy import LEAST_TEXT, Policy
from vlkv.storage.manifest import Manifest

SHORT_TEXT = LEAST_TEXT
"""Up to here a text is short, as a question of a chat is: `vl-cache` then keeps more of its answer at every budget."""


def taken(policy: Policy, prompt: Prompt, manifest: Manifest, backend: Backend, more: bool = False) -> Policy:
    """The policy that a prompt takes: the rule's for `auto`, whose `recall` it keeps, and any other as it is.

    Args:
        policy: of the question.
        prompt: the whole prompt.
        manifest: of the engine, which may not be able to run `picture-once`.
        backend: of the engine.
        more: whether later questions are answered from what this one leaves in the cache.
    """
    if replace(policy, recall=None) != AUTO:
        return policy
    name = DEFAULT_POLICY
    if not prompt.pictures and len(prompt.token_ids) <= SHORT_TEXT:
        name = "vl-cache"
    elif prompt.pictures and more and _fits("picture-once", manifest, backend):
        name = "picture-once"
    return replace(POLICIES[name], recall=policy.recall)


def _fits(name: str, manifest: Manifest, backend: Backend) -> bool:
    try:
        check_fit(POLICIES[name], manifest, backend)
    except PolicyError:
        return False
    return True
