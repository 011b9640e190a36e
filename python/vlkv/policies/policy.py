"""Policies are data: one frozen record says which rows are observed, how the budget is split, what stays.

Sources: VL-Cache (arXiv 2410.23317), Elastic Cache (arXiv 2407.18121), H2O (arXiv 2306.14048), SnapKV (arXiv
2404.14469), PyramidKV (arXiv 2406.02069), StreamingLLM (arXiv 2309.17453). Where they are departed from is in
`docs/notes/policies.md` and `docs/notes/elastic-cache.md`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args, get_type_hints

from vlkv.errors import PolicyError
from vlkv.ops.allocation import FLOOR, check_share
from vlkv.ops.constants import THRESHOLD

LEAST_TOKENS = 64
"""Of a prompt, in each layer on average, where no budget is given: a question without a picture has no tokens to spare.
A chat template's own are 30; of ten such questions a language model answered none as with the full cache at a tenth."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a prompt's cache is compressed after prefill, and what decoding evicts.

    Fields:
        name: what it is called in results.
        rows: which prompt rows are observed: none, those after the last image token (the last `window`
            where there is no picture), all, or the last `window`.
        window: rows observed where `rows` is `last`, or where a prompt has no picture.
        threshold: p of the sparsity measure; an attention weight under p times its row's largest counts as zero.
        pooling: how neighbours share scores before selection: not, by their largest, or by their mean (zeros
            beyond the ends). Scores of the tokens that always stay at the end take no part.
        kernel: neighbours pooled, an odd number, the token itself in the middle.
        allocation: how the budget is split over layers: by sparsity, equally, as a pyramid that narrows from
            the first layer to the last, or `all`: every layer keeps all.
        rule: `exact` keeps the total equal to the budget after clipping, `paper` is the published formula.
        floor: the smallest share of a prompt that a layer keeps.
        beta: steepness of the pyramid: its last layer's share is 1 / beta of the average.
        sinks: first tokens that always stay.
        recent: share of a layer's count that always stays at the prompt's end.
        recent_tokens: the same as a number; the larger of the two counts.
        keep_observed: the observed rows' own tokens always stay (as many of the last as a layer's count allows).
        per_head: one selection for each KV head, or one shared by all.
        merge: what becomes of the evicted: `none` drops them, `nearest_mean` averages them into kept neighbours.
        anchors: which of the tokens that may go stay: those of the highest scores, `published`: those of which
            `argsort(scores)` holds the largest numbers, as Elastic Cache's code has it, or `spread`: evenly over the
            prompt, whatever their scores.
        decode: what a new token does to the cache: `append` grows it; `sliding` drops the oldest but the sinks,
            `lowest` observes decoding and drops the lowest score but the sinks and the recent, both at the
            prompt's count; `fixed_point` drops at the truncation point, `distance` before the end after prefill,
            past the budget's share of prompt and answer.
        distance: of the truncation point.
    """

    name: str
    _: KW_ONLY
    rows: Literal["none", "post_vision", "all", "last"] = "none"
    window: int = 32
    threshold: float = THRESHOLD
    pooling: Literal["none", "max", "mean"] = "none"
    kernel: int = 1
    allocation: Literal["sparsity", "equal", "pyramid", "all"] = "equal"
    rule: Literal["exact", "paper"] = "exact"
    floor: float = FLOOR
    beta: float = 20.0
    sinks: int = 0
    recent: float = 0.0
    recent_tokens: int = 0
    keep_observed: bool = False
    per_head: bool = True
    merge: Literal["none", "nearest_mean"] = "none"
    anchors: Literal["scores", "published", "spread"] = "scores"
    decode: Literal["append", "sliding", "lowest", "fixed_point"] = "append"
    distance: int = 25

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise PolicyError(f"policy name {self.name!r} is empty or no text; give it a name")
        for field, hint in get_type_hints(Policy).items():
            if choices := get_args(hint):
                value = getattr(self, field)
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
            ("distance", 0),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self._wrong(field, f"is no whole number of at least {least}")
        for field in ("threshold", "floor", "recent"):
            self._number(field, 0.0, 1.0)
        self._number("beta", 1.0, 1e6)
        self._contradictions()

    @property
    def keeps_all(self) -> bool:
        """Whether every layer keeps every token, so that nothing is observed and nothing evicted."""
        return self.allocation == "all"

    def _contradictions(self) -> None:
        """Fields that are right alone and wrong together."""
        if self.kernel % 2 == 0:
            raise self._wrong("kernel", "is even; an odd number has a middle, such as 7")
        if (self.pooling == "none") != (self.kernel == 1):
            raise self._wrong(
                "kernel", f"does not go with pooling {self.pooling!r}; 1 goes with none, 7 with max"
            )
        if self.merge != "none" and self.per_head:
            raise self._wrong("merge", "needs one selection for all heads; give per_head=False with it")
        if self.anchors != "scores" and self.per_head:
            raise self._wrong("anchors", "need one selection for all heads; give per_head=False with it")
        if self.rows == "none" and self.allocation == "sparsity":
            raise self._wrong("allocation", "needs observed rows; give rows, such as 'post_vision'")
        if self.keep_observed and self.rows in ("none", "all"):
            raise self._wrong(
                "keep_observed", f"does not go with rows {self.rows!r}; with post_vision and last"
            )
        if self.keeps_all and (self.rows, self.decode) != ("none", "append"):
            raise self._wrong(
                "allocation", "evicts nothing; it goes with rows 'none' and decode 'append' only"
            )

    def _number(self, field: str, least: float, most: float) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise self._wrong(field, f"is outside {least:g} to {most:g}")

    def _wrong(self, field: str, text: str) -> PolicyError:
        return PolicyError(f"policy {self.name!r}: {field} {getattr(self, field)!r} {text}")


def check_budget(budget: float, policy: Policy) -> float:
    """The budget as a float; outside (0, 1], or under 1 where nothing is evicted, it is a `PolicyError`."""
    share = check_share(budget)
    if policy.keeps_all and share != 1.0:
        raise PolicyError(
            f"budget {budget!r} does not go with policy {policy.name!r}, which keeps all; give 1, or another policy"
        )
    return share


def default_budget(policy: Policy, length: int) -> float:
    """The budget of a prompt of `length` tokens where none is given: a tenth, but `LEAST_TOKENS` a layer on average.

    So a short prompt stays whole. 1 where nothing is evicted.
    """
    return 1.0 if policy.keeps_all else min(1.0, max(0.1, LEAST_TOKENS / max(1, length)))
