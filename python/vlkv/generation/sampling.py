"""Sampling: the next token, greedy or drawn under temperature, top-k and top-p."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlkv.errors import SamplingError, VlkvError, quoted
from vlkv.generation.logits import Penalties, TokenLogprob, logprobs
from vlkv.storage.manifest import GenerationFacts

MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_PENALTY, MAX_NGRAM = 100, 64
MAX_WORDS, MAX_WORD = 256, 32
"""Limits of what a request may ask: each token's choice is paid by all answers that run beside it."""


class Grammar(Protocol):
    """A grammar that the answer must follow; see `vlkv.inputs.grammar.Matcher`."""

    def restrict(self, logits: NDArray[np.float32]) -> None:
        """Sets the logits `[V]` of tokens that can't come next to minus infinity, in place."""
        ...

    def take(self, token: int) -> None:
        """Advances past a chosen token."""
        ...


MAX_STOPS = 64
MAX_STOP_LENGTH = 256
MOST = 1024
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer's tokens are chosen and when it ends. A value outside its range is a `SamplingError`.

    Fields:
        temperature: 0 takes the most likely token; a larger value divides the logits.
        top_k: draw from the k most likely tokens and those as likely as the k-th; 0 or None for all tokens.
        top_p: draw from the smallest set of most likely tokens whose probabilities sum to at least this.
        seed: equal seeds give equal draws; None draws differently each time.
        max_new_tokens: the most tokens of an answer.
        stop: texts before which an answer ends, at most `MAX_STOPS` of `MAX_STOP_LENGTH` characters; a single text
            needs no list. The text of a special token, such as `<|im_end|>`, also matches that token.
        frequency_penalty: subtracted from a token's logit once per occurrence in the answer, -2 to 2.
        presence_penalty: subtracted once from the logit of each token that the answer contains, -2 to 2.
        logit_bias: added to the logits of these token ids, each -100 to 100.
        logprobs: the number of alternatives to return with each token's log probability, 0 to 20; None returns none.
        json_schema: a JSON schema, as JSON text, that the answer must follow; None for free text.
        repetition_penalty: divides positive logits of earlier tokens and multiplies negative ones; 1 disables it, None
            takes the checkpoint's setting.
        no_repeat_ngram_size: n-grams of this size occur only once in prompt and answer; 0 disables it, None as above.
        min_new_tokens: the end token is forbidden before this many tokens; None as above.
        suppress_tokens: token ids that are never chosen, at most `MAX_BIASES`; None as above.
        bad_words_ids: sequences of token ids that never occur, at most `MAX_WORDS` of `MAX_WORD` ids; None as above.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 256
    stop: Sequence[str] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    json_schema: str | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    suppress_tokens: Sequence[int] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        self._need("stop", isinstance(self.stop, str | list | tuple), "a text, or a tuple of texts")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        self._need("temperature", _is_number(self.temperature) and self.temperature >= 0, "0 or more")
        top_k = 0 if self.top_k is None else self.top_k
        self._need("top_k", _is_whole(top_k) and top_k >= 0, "a whole number, 0 or more")
        self._need("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "in (0, 1]")
        seed = 0 if self.seed is None else self.seed
        self._need("seed", _is_whole(seed) and 0 <= seed < 2**64, "a whole number in [0, 2^64)")
        tokens = self.max_new_tokens
        self._need("max_new_tokens", _is_whole(tokens) and tokens >= 1, "a whole number, 1 or more")
        penalty = 1.0 if self.repetition_penalty is None else self.repetition_penalty
        right = _is_number(penalty) and 1 / MAX_PENALTY <= penalty <= MAX_PENALTY
        self._need("repetition_penalty", right, f"above 0: {1 / MAX_PENALTY:g} to {MAX_PENALTY}")
        for name, most in (("no_repeat_ngram_size", MAX_NGRAM), ("min_new_tokens", 2**31 - 1)):
            count = 0 if getattr(self, name) is None else getattr(self, name)
            self._need(name, _is_whole(count) and 0 <= count <= most, f"a whole number, 0 to {most}")
        ids = () if self.suppress_tokens is None else self.suppress_tokens
        self._need("suppress_tokens", _are_ids(ids, MAX_BIASES), f"at most {MAX_BIASES} token ids")
        words = () if self.bad_words_ids is None else self.bad_words_ids
        listed = isinstance(words, list | tuple) and len(words) <= MAX_WORDS
        sound = listed and all(_are_ids(word, MAX_WORD) and len(word) for word in words)
        self._need("bad_words_ids", sound, f"at most {MAX_WORDS} lists of 1 to {MAX_WORD} token ids")
        if len(self.stop) > MAX_STOPS:
            raise SamplingError(f"stop has {len(self.stop)} texts, the limit is {MAX_STOPS}")
        longest = max((len(text) for text in self.stop if isinstance(text, str)), default=0)
        if longest > MAX_STOP_LENGTH:
            raise SamplingError(f"stop has a text of {longest} characters, the limit is {MAX_STOP_LENGTH}")
        sound = all(map(_is_text, self.stop))
        self._need("stop", sound, "texts that are not empty, without lone surrogates")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            self._need(name, _is_number(value) and -2 <= value <= 2, "in [-2, 2]")
        bias = self.logit_bias
        right = isinstance(bias, Mapping) and len(bias) <= MAX_BIASES
        self._need("logit_bias", right, f"a mapping of at most {MAX_BIASES} token ids to numbers")
        sound = all(_is_whole(n) and n >= 0 and _is_number(v) and -100 <= v <= 100 for n, v in bias.items())
        self._need("logit_bias", sound, "of token ids and numbers in [-100, 100]")
        top = 0 if self.logprobs is None else self.logprobs
        self._need("logprobs", _is_whole(top) and 0 <= top <= MAX_LOGPROBS, f"in 0 to {MAX_LOGPROBS}")
        self._need("json_schema", isinstance(self.json_schema, str | None), "a JSON schema as text")
        self._use_pythons_numbers()

    def _use_pythons_numbers(self) -> None:
        """NumPy's numbers of 8 bits overflow in sums with others, and negative unsigned ones are large."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, entry.name, value.item())
        for name in ("suppress_tokens", "bad_words_ids"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _plain(getattr(self, name)))
        biases = {int(token): float(bias) for token, bias in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", biases)

    def merged(self, facts: GenerationFacts) -> GenerationFacts:
        """The checkpoint's settings, replaced by this request's where it has its own."""
        names = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.suppress_tokens is not None:
            own["suppress_tokens"] = tuple(self.suppress_tokens)
        if self.bad_words_ids is not None:
            own["bad_words"] = tuple(map(tuple, self.bad_words_ids))
        return msgspec.structs.replace(facts, **own)

    def _need(self, name: str, right: bool, wanted: str) -> None:
        if not right:
            raise SamplingError(f"{name} {quoted(getattr(self, name))} is not {wanted}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _are_ids(value: object, most: int) -> bool:
    if not isinstance(value, list | tuple) or len(value) > most:
        return False
    return all(_is_whole(token) and 0 <= token < 2**31 for token in value)


def _plain(value: Any) -> Any:
    """Token ids, or lists of them, as tuples of Python's numbers."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else int(value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


class Sampler:
    """Chooses the tokens of one answer, with random numbers of its own, so that other requests don't change them.

    Args:
        sampling: how tokens are chosen.
        grammar: the grammar that the answer must follow; None for free text.

    Attributes:
        logprob: the log probability of the last chosen token, if `sampling.logprobs` asks for it.
    """

    def __init__(self, sampling: Sampling, grammar: Grammar | None = None) -> None:
        self._sampling, self._grammar = sampling, grammar
        self._random = np.random.Generator(np.random.Philox(sampling.seed))
        self._penalties: Penalties | None = None
        if sampling.frequency_penalty or sampling.presence_penalty:
            self._penalties = Penalties(sampling.frequency_penalty, sampling.presence_penalty)
        self._biases = sorted(sampling.logit_bias.items())
        self.logprob: TokenLogprob | None = None

    @property
    def plain(self) -> bool:
        """Whether temperature, top-k and top-p alone decide, and nothing else of the logits is asked for."""
        return not (self._penalties or self._biases or self._grammar) and self._sampling.logprobs is None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn; else they are those of the largest logits."""
        return self._sampling.temperature != 0

    def choice(self) -> tuple[float, float, float, float]:
        """Temperature, top-k, top-p and the next random number, for a draw that is made elsewhere."""
        asked = self._sampling
        random = self._random.random() if self.draws else 0.0
        return float(asked.temperature), float(asked.top_k or 0), float(asked.top_p), random

    def pick(self, logits: NDArray[np.floating]) -> int:
        """Chooses a token from logits `[V]`: the lowest id of the largest logit, or a draw.

        A NaN or an infinite largest logit is a `VlkvError`: the model or its weights are damaged.
        """
        best = _best(logits)
        if self._penalties or self._biases or self._grammar:
            logits = self._adjusted(logits)
            best = _best(logits)
        token = self._draw(logits) if self.draws else best
        if self._sampling.logprobs is not None:
            self.logprob = logprobs(logits, token, self._sampling.logprobs)
        if self._penalties is not None:
            self._penalties.take(token)
        if self._grammar is not None:
            self._grammar.take(token)
        return token

    def _draw(self, logits: NDArray[np.floating]) -> int:
        weight = _weights(logits, self._sampling)
        return _place(weight, self._random.random() * float(weight.sum()))

    def _adjusted(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        changed = logits.astype(np.float32)
        if self._penalties is not None:
            self._penalties.apply(changed)
        for token, bias in self._biases:
            changed[token] += bias
        if self._grammar is not None:
            self._grammar.restrict(changed)
        return changed


def _best(logits: NDArray[np.floating]) -> int:
    if logits.ndim != 1 or logits.size == 0:
        raise VlkvError(f"logits of one token are wanted, [V], not {list(logits.shape)}")
    best = int(logits.argmax())  # a NaN counts as the largest
    check_best(best, float(logits[best]))
    return best


def check_best(token: int, logit: float) -> None:
    """Raises `VlkvError` if the largest logit is not finite."""
    if not math.isfinite(logit):
        raise VlkvError(f"the model's logits hold {logit} (token {token}): damaged or overflowing weights")


def kept_tokens(
    logits: NDArray[np.floating], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the ids that may be drawn, ascending, and their weights (largest 1), from finite logits `[V]`.

    The steps and their order are those of transformers: temperature, top-k, top-p.
    """
    weight = _weights(logits, sampling)
    kept = np.flatnonzero(weight).astype(np.int64, copy=False)
    return kept, weight[kept]


def _weights(logits: NDArray[np.floating], sampling: Sampling) -> NDArray[np.float64]:
    """The weights `[V]` of a draw, largest 1; 0 for tokens that may not be drawn."""
    weight = _exp(logits, logits.max(), sampling.temperature)
    ranked = logits
    if sampling.top_k and sampling.top_k < len(logits):
        lowest = np.partition(logits, -sampling.top_k)[-sampling.top_k]
        weight[logits < lowest] = 0
        ranked = logits[logits >= lowest]
    if sampling.top_p < 1:
        lowest, inside = _nucleus(ranked, float(weight.sum()), sampling)
        weight[logits < lowest] = 0
        equal = np.flatnonzero(logits == lowest)
        weight[equal[: len(equal) - inside]] = 0
    return weight


def _exp(logits: NDArray[np.floating], largest: np.floating, temperature: float) -> NDArray[np.float64]:
    weight = logits.astype(np.float64)
    weight -= largest
    with np.errstate(over="ignore"):
        weight /= temperature
    return np.exp(weight, out=weight)


def _nucleus(logits: NDArray[np.floating], total: float, sampling: Sampling) -> tuple[np.floating, int]:
    """The smallest logit of the top-p set, and how many tokens with exactly that logit belong to the set."""
    limit, size = (1 - sampling.top_p) * total, len(logits)
    ranked, left = logits, 0.0
    if size > MOST:
        # likely tokens are usually few; the whole vocabulary is sorted only if they are many
        top = np.partition(logits, -MOST)[-MOST:]
        rest = total - float(_exp(top, top.max(), sampling.temperature).sum())
        if rest <= limit:
            ranked, left = top, rest
    ranked = np.sort(ranked)
    first = _place(_exp(ranked, ranked[-1], sampling.temperature), limit - left)
    lowest = ranked[first]
    return lowest, int(np.searchsorted(ranked, lowest, side="right")) - first


def _place(weight: NDArray[np.float64], limit: float) -> int:
    """The first index up to which the weights sum to more than `limit`; in blocks, as one long sum is slow.

    If rounding leaves no such index, it is the last one with a weight above 0.
    """
    blocks = np.cumsum(np.add.reduceat(weight, np.arange(0, len(weight), BLOCK)))
    block = int(np.searchsorted(blocks, limit, side="right"))
    start = block * BLOCK
    inside = np.cumsum(weight[start : start + BLOCK]) + (blocks[block - 1] if block else 0.0)
    found = start + int(np.searchsorted(inside, limit, side="right"))
    if found < len(weight) and weight[found] > 0:
        return found
    weighing = np.flatnonzero(weight)
    return int(weighing[max(0, int(np.searchsorted(weighing, found)) - 1)])
