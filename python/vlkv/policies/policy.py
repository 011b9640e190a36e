"""The `Policy` record: the observation window, the split of the budget, and the selection of tokens.

Sources: VL-Cache (arXiv 2410.23317), Elastic Cache (arXiv 2407.18121), H2O (arXiv 2306.14048), SnapKV (arXiv
2404.14469), PyramidKV (arXiv 2406.02069), StreamingLLM (arXiv 2309.17453). `docs/notes/policies.md` and
`docs/notes/elastic-cache.md` list the differences.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

from vlkv.errors import PolicyError
from vlkv.ops.allocation import FLOOR, check_share
from vlkv.ops.constants import THRESHOLD
from vlkv.policies.recall import Recall

LEAST_TOKENS = 64
"""The least prompt tokens to keep, per layer on average, if no budget is given. A chat template alone has about 30
tokens; of ten questions without a picture, a language model answered none at a tenth as it did with the full cache."""
LEAST_TEXT = 256
"""The same of a prompt without a picture. With 64 of a text of 317 tokens, the same model lost its answer under
`elastic` and `pyramidkv`."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a prompt's cache is compressed after prefill, and what decoding evicts.

    Fields:
        name: the policy's name in results.
        rows: the observation window: no rows, the rows after the last image token (the last `window` rows without a
            picture), all rows, the last `window` rows, or `probe`: no row of the prompt. The embeddings of the image
            tokens are then run a second time behind the last picture, observed, and discarded (KVzip, arXiv
            2505.23416, re-feeds a text); the scores depend on the pictures alone. Without a picture the rows are
            the last `window`.
        reduce: how the rows' attention becomes one score: their sum, the largest over all rows, or `weighted`: for
            image tokens the sum in which a row weighs the mean attention that its own token receives from the
            window's rows that see it (TGV-KV, arXiv 2606.03075). Query heads of a KV head always sum.
        window: the size of the window if `rows` is `last`, or if a prompt has no picture.
        threshold: p of the sparsity measure; an attention weight under p times its row's largest counts as zero.
        pooling: how scores are pooled over neighbours before selection: not at all, by maximum, or by mean (zeros
            beyond the ends). Scores of the last tokens that always stay take no part.
        kernel: the number of pooled neighbours, odd, with the token itself in the middle.
        diversity: what pooled scores are mixed with: nothing, or `keys`: how far a token's key points away from the
            mean key, and the norm of its value; the more alike a head's keys are, the more the former weighs (MixKV,
            arXiv 2510.20707).
        allocation: how the budget is split over layers: by sparsity; by the attention that the observed rows give
            image tokens (`vision`, TGV-KV); equally; as a pyramid that narrows from the first layer to the last; or
            `all`: every layer keeps all tokens.
        rule: `exact` keeps the total equal to the budget after clipping; `paper` is the published formula.
        floor: the smallest share of a prompt that a layer keeps.
        beta: steepness of the pyramid: its last layer's share is 1 / beta of the average.
        sinks: the number of first tokens that always stay.
        recent: the share of a layer's kept tokens that are the prompt's last tokens.
        recent_tokens: the same as a number of tokens; the larger of the two applies.
        text: the share of a layer's kept tokens up to which text stays before image tokens, the best text first;
            1 for as long as the budget holds it. Text is what lies outside pictures and frames. Sinks and the last
            tokens count, and text beyond the share competes by score.
        text_tokens: the same as a number of tokens; the larger of the two applies.
        keep_observed: whether the tokens of the observation window always stay (as many as a layer keeps, from the
            end).
        per_head: whether each KV head selects separately, or all heads share one selection.
        merge: the treatment of evicted tokens: `none` drops them, `nearest_mean` averages them into kept neighbours.
        anchors: the selection among tokens that may be evicted: those with the highest scores; `published`, those for
            which `argsort(scores)` holds the largest numbers, as in Elastic Cache's code; or `spread`, evenly over the
            prompt.
        decode: the effect of a new token on the cache: `append` grows it; `sliding` drops the oldest token except
            sinks; `lowest` observes decoding and drops the lowest score except sinks and recent tokens (both keep the
            prompt's count); `fixed_point` drops the token at the truncation point once the cache exceeds the budget's
            share of prompt and answer.
        distance: the truncation point's distance from the end of the cache after prefill.
        recall: whether evicted tokens stay in host memory and each decoded token attends to the best pages of them;
            None drops them.
    """

    name: str
    _: KW_ONLY
    rows: Literal["none", "post_vision", "all", "last", "probe"] = "none"
    reduce: Literal["sum", "max", "weighted"] = "sum"
    window: int = 32
    threshold: float = THRESHOLD
    pooling: Literal["none", "max", "mean"] = "none"
    kernel: int = 1
    diversity: Literal["none", "keys"] = "none"
    allocation: Literal["sparsity", "vision", "equal", "pyramid", "all"] = "equal"
    rule: Literal["exact", "paper"] = "exact"
    floor: float = FLOOR
    beta: float = 20.0
    sinks: int = 0
    recent: float = 0.0
    recent_tokens: int = 0
    text: float = 0.0
    text_tokens: int = 0
    keep_observed: bool = False
    per_head: bool = True
    merge: Literal["none", "nearest_mean"] = "none"
    anchors: Literal["scores", "published", "spread"] = "scores"
    decode: Literal["append", "sliding", "lowest", "fixed_point"] = "append"
    distance: int = 25
    recall: Recall | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise PolicyError(f"policy name {self.name!r} is not a text, or is empty; give it a name")
        for field, hint in get_type_hints(Policy).items():
            if get_origin(hint) is Literal:
                choices, value = get_args(hint), getattr(self, field)
                if value not in choices:
                    raise self._wrong(field, f"is unknown; known: {', '.join(choices)}")
        for field in ("per_head", "keep_observed"):
            if not isinstance(getattr(self, field), bool):
                raise self._wrong(field, "is neither True nor False")
        for field, least in (
            ("window", 1),
            ("kernel", 1),
            ("sinks", 0),
            ("recent_tokens", 0),
            ("text_tokens", 0),
            ("distance", 0),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self._wrong(field, f"is not a whole number of at least {least}")
        for field in ("threshold", "floor", "recent", "text"):
            self._number(field, 0.0, 1.0)
        self._number("beta", 1.0, 1e6)
        if self.recall is not None and not isinstance(self.recall, Recall):
            raise self._wrong("recall", "is neither None nor a Recall")
        self._contradictions()

    @property
    def keeps_all(self) -> bool:
        """Whether every layer keeps every token, so nothing is observed or evicted."""
        return self.allocation == "all"

    @property
    def protects_text(self) -> bool:
        """Whether text stays before image tokens."""
        return bool(self.text or self.text_tokens)

    @property
    def protected(self) -> str:
        """What stays whatever its score, in words."""
        if self.keeps_all:
            return "every token"
        parts = []
        if self.sinks:
            parts.append("the first token" if self.sinks == 1 else f"the first {self.sinks} tokens")
        if self.keep_observed:
            parts.append("all behind the last picture" if self.rows == "probe" else "the observation window")
        if self.recent == 1.0:
            parts.append("the most recent tokens")
        elif self.recent:
            parts.append(f"the last {self.recent:.0%} of a layer's share")
        if self.recent_tokens:
            last = self.recent_tokens
            parts.append("the last token" if last == 1 else f"the last {last} tokens")
        if self.protects_text:
            most = [f"{self.text:.0%} of a layer's share"] if self.text else []
            most += [f"{self.text_tokens} tokens"] if self.text_tokens else []
            parts.append(f"text before image tokens, up to {' or '.join(most)}")
        return "; ".join(parts) or "nothing"

    def _contradictions(self) -> None:
        """Raises `PolicyError` for fields that are valid alone and contradict each other."""
        if self.kernel % 2 == 0:
            raise self._wrong("kernel", "is even; an odd number has a middle, such as 7")
        if (self.pooling == "none") != (self.kernel == 1):
            raise self._wrong(
                "kernel", f"does not fit pooling {self.pooling!r}; use 1 with none, such as 7 with max"
            )
        if self.merge != "none" and self.per_head:
            raise self._wrong("merge", "needs one selection for all heads; set per_head=False")
        if self.anchors != "scores" and self.per_head:
            raise self._wrong("anchors", "need one selection for all heads; set per_head=False")
        if self.rows == "none" and self.allocation in ("sparsity", "vision"):
            raise self._wrong("allocation", "needs observed rows; set rows, such as 'post_vision'")
        if self.keep_observed and self.rows in ("none", "all"):
            raise self._wrong("keep_observed", f"does not fit rows {self.rows!r}; use post_vision or last")
        if self.reduce != "sum" and (self.rows == "none" or self.decode == "lowest"):
            raise self._wrong(
                "reduce", "needs observed rows, and decode other than 'lowest', which adds to sums"
            )
        if self.diversity != "none" and self.rows == "none":
            raise self._wrong(
                "diversity", "is mixed with scores, which need observed rows; set rows, such as 'last'"
            )
        if self.reduce == "weighted" and self.rows not in ("post_vision", "last"):
            raise self._wrong("reduce", f"does not fit rows {self.rows!r}; use post_vision or last")
        if self.rows == "probe" and self.decode == "lowest":
            raise self._wrong("rows", "is discarded before decoding; decode 'lowest' needs rows that stay")
        if self.protects_text and self.decode != "append":
            field = "text" if self.text else "text_tokens"
            raise self._wrong(
                field, f"does not fit decode {self.decode!r}, which evicts text too; use append"
            )
        if self.keeps_all and (self.rows, self.decode) != ("none", "append"):
            raise self._wrong("allocation", "evicts nothing; it requires rows 'none' and decode 'append'")
        if self.recall is not None:
            self._check_recall()

    def _check_recall(self) -> None:
        if self.keeps_all:
            raise PolicyError(
                f"policy {self.name!r} evicts nothing, so that nothing can be recalled; leave recall out"
            )
        if self.merge != "none":
            raise PolicyError(f"policy {self.name!r} merges what it evicts; recall goes with merge 'none'")
        if self.decode != "append":
            raise PolicyError(
                f"policy {self.name!r} evicts while decoding; recall goes with decode 'append', as in snapkv"
            )

    def _number(self, field: str, least: float, most: float) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise self._wrong(field, f"is outside {least:g} to {most:g}")

    def _wrong(self, field: str, text: str) -> PolicyError:
        return PolicyError(f"policy {self.name!r}: {field} {getattr(self, field)!r} {text}")


def with_recall(policy: Policy, share: float | None) -> Policy:
    """The policy with `Recall(share)`, or as it is for None. Raises `PolicyError` if they do not fit."""
    return policy if share is None else replace(policy, recall=Recall(share))


def check_budget(budget: float, policy: Policy) -> float:
    """Returns the budget as a float. Raises `PolicyError` outside (0, 1], or under 1 if the policy keeps everything."""
    share = check_share(budget)
    if policy.keeps_all and share != 1.0:
        raise PolicyError(
            f"budget {budget!r} does not fit policy {policy.name!r}, which keeps everything; use 1 or another policy"
        )
    return share


def default_budget(policy: Policy, length: int, text_only: bool = False) -> float:
    """The default budget of a prompt of `length` tokens: a tenth, but not less than a number of tokens per layer.

    That number is `LEAST_TOKENS`, on average, and `LEAST_TEXT` without a picture: a text is less redundant than a
    picture's patches. So a short prompt is kept whole. The budget is 1 for a policy that keeps everything, and for a
    text under a policy that merges what it evicts: a language model answers a merged text with "TheTheThe".
    """
    if policy.keeps_all or (text_only and policy.merge != "none"):
        return 1.0
    return min(1.0, max(0.1, (LEAST_TEXT if text_only else LEAST_TOKENS) / max(1, length)))
