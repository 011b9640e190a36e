"""`Sequence`: one prompt and its answer, from the prepared prompt to the last token.

Prefill gives it a cache and its first logits; decoding adds tokens. A conversation extends a sequence, `fork` copies
one, `forced` feeds one, and the scheduler batches them. L layers, V vocabulary.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL.Image import Image

from vlkv.backend.cache import Cache
from vlkv.dtypes import Float32, Int64
from vlkv.errors import ImageError, PolicyError, PromptError, SamplingError, quoted
from vlkv.generation.constraints import Constraints
from vlkv.generation.points import Point
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.generation.reuse import Known
from vlkv.generation.sampling import Grammar, Sampler, Sampling, check_best
from vlkv.generation.stopping import Stopping
from vlkv.inputs.image import picture_size
from vlkv.inputs.layouts import Layout, lay_out, lay_out_video
from vlkv.inputs.messages import build_chat
from vlkv.inputs.pictures import Clip, Limits, read_visuals
from vlkv.inputs.prompt import Medium, Prompt, build_prompt, media_of
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.model import Model
from vlkv.ops.recall import RecallStore
from vlkv.policies.auto import taken
from vlkv.policies.builtin import resolve
from vlkv.policies.decode_eviction import Eviction
from vlkv.policies.observe import check_fit
from vlkv.policies.policy import Policy, check_budget, default_budget, with_recall
from vlkv.policies.windows import Windows, kept_within, reached, slots_within
from vlkv.pruning.methods import resolve_prune
from vlkv.pruning.picture import Pruner
from vlkv.storage.image_facts import Fixed, ImageFacts, NoPictures, takes_pictures
from vlkv.storage.manifest import Manifest, token_bytes

Read = Callable[
    [abc.Sequence[Any], abc.Sequence[Clip], abc.Sequence[Layout], Manifest, Limits], abc.Sequence[Float32]
]
"""Turns pictures and videos into pixel values, as `vlkv.inputs.pictures.read_visuals` does."""


@dataclass(eq=False)
class Sequence:
    """One prompt and its answer.

    Fields:
        prompt: its token ids.
        images: pictures, or the pixel values `[tiles,3,height,width]` of each and of videos' frames, or, without a
            pruner, known pictures; prefill needs them, nothing after it.
        policy: how its cache is kept.
        budget: the share of the prompt's cache to keep.
        max_new_tokens: the most tokens of the answer; prompt and answer together fit the model's positions.
        sampling: how tokens are chosen.
        want_scores: whether the result includes the scores.
        grammar: the grammar that the answer must follow; None for free text.
        open_ended: whether more turns may follow in the same cache.
        pruner: chooses the image tokens to leave out before prefill; None runs all.

    Attributes:
        result: the result so far; `begin` makes it.
        cache: the kept prompt tokens, with free slots for the answer; None before prefill, and after the cache became
            part of a batch.
        windows: the sliding windows `[L]` that prompt and answer exceed, 0 for other layers.
        positions: the positions `[S]` of the prompt tokens that run, ascending; all unless the prompt is pruned.
        eviction: the eviction during decoding; None if nothing is evicted.
        recall: its evicted tokens, from prefill to the answer's end; None if the policy drops them.
        logits: the logits `[V]` of the prompt's last token, after prefill.
        points: where the answer stands, newest last, if it is decoded carefully; see `Point`.
    """

    prompt: Prompt
    images: abc.Sequence[Image | Float32 | Known]
    policy: Policy
    budget: float
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    want_scores: bool = False
    grammar: Grammar | None = None
    open_ended: bool = False
    pruner: Pruner | None = None
    result: Result = field(init=False, default_factory=Result)
    cache: Cache | None = field(init=False, default=None)
    windows: Windows = field(init=False, default=())
    positions: Int64 = field(init=False, default_factory=lambda: np.zeros(0, np.int64))
    eviction: Eviction | None = field(init=False, default=None)
    recall: RecallStore | None = field(init=False, default=None)
    logits: Float32 = field(init=False, default_factory=lambda: np.zeros(0, np.float32))
    points: list[Point] = field(init=False, default_factory=list)
    _tokenizer: Tokenizer = field(init=False, repr=False)
    _ends: set[int] = field(init=False, repr=False)
    _sampler: Sampler = field(init=False, repr=False)
    _constraints: Constraints = field(init=False, repr=False)
    _stopping: Stopping = field(init=False, repr=False)

    def begin(self, model: Model) -> None:
        """Makes the result, with the fields that are known before prefill."""
        length, text = len(self.prompt.token_ids), model.manifest.text
        most = length + self.max_new_tokens
        self.windows = reached(text, None if self.open_ended else most)
        slot = token_bytes(text, model.manifest.cache_dtype) * model.backend.store.sets
        self.result = Result(
            prompt_tokens=length,
            image_tokens=len(self.prompt.image_positions),
            image_positions=self.prompt.image_positions,
            policy=self.policy.name,
            budget=self.budget,
            sparsity=[0.0] * text.layers,
            kept_tokens=[kept_within(length, window) for window in self.windows],
            cache_bytes_full=slot * sum(slots_within(most, self.windows)),
        )
        self.positions = np.arange(length)
        self._sampler = Sampler(self.sampling, self.grammar)
        if self.sampling.logprobs is not None:
            self.result.logprobs = []
        settings, eos = self.sampling.merged(model.manifest.generation), model.manifest.tokens.eos
        self._constraints = Constraints(settings, self.prompt.token_ids, eos)
        self._tokenizer = model.tokenizer
        self._ends = {*model.manifest.tokens.eos, *model.tokenizer.special_ids(self.sampling.stop)}
        self._stopping = self._begun()

    def _begun(self) -> Stopping:
        return Stopping(self._tokenizer.detokenizer(), self._ends, self.sampling.stop, self.max_new_tokens)

    def restore_text(self) -> None:
        """Makes the text what the tokens say, wherever taking one was interrupted."""
        stopping = self._begun()
        self.result.text = "".join([stopping.push(token) for token in self.result.token_ids])
        self.result.finish_reason, self._stopping = stopping.finish_reason or "", stopping

    @property
    def ended_by_token(self) -> bool:
        """Whether the answer ends with an end token, or with the special token of a stop text."""
        tokens = self.result.token_ids
        return bool(tokens) and tokens[-1] in self._ends

    @property
    def kept_whole(self) -> bool:
        """Whether nothing of the prompt is evicted: the policy keeps all, and no layer's window is exceeded."""
        return self.policy.keeps_all and not any(self.windows)

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._stopping.finish_reason is not None

    @property
    def last_token(self) -> int:
        """The newest token, which the next step runs."""
        return self.result.token_ids[-1]

    @property
    def position(self) -> int:
        """The position of the next token to run; eviction does not change positions."""
        return self.result.prompt_tokens + max(0, len(self.result.token_ids) - 1)

    def prune_to(self, positions: Int64) -> None:
        """Leaves out the prompt tokens at other positions; those of the others don't change."""
        self.positions = positions
        self.result.pruned_tokens = self.result.prompt_tokens - len(positions)

    @property
    def plain(self) -> bool:
        """Whether temperature, top-k and top-p alone decide each token, and nothing else of the logits is asked for."""
        return self._sampler.plain and not self._constraints.active

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn; else they are those of the largest logits."""
        return self._sampler.draws

    def choice(self) -> tuple[float, float, float, float]:
        """How a backend chooses the next token, a row of `vlkv.backend.base.Choice`; it uses up a random number."""
        return self._sampler.choice()

    def take(self, logits: Float32) -> str:
        """Chooses a token from logits `[V]`; returns the text that has become certain."""
        return self._push(self._sampler.pick(self._constraints.apply(logits)))

    def accept(self, token: int, best: float) -> str:
        """The same for a token that a backend chose for a `plain` sequence; `best` is the largest logit."""
        check_best(token, best)
        return self._push(token)

    def _push(self, token: int) -> str:
        self._constraints.push(token)
        self.result.token_ids.append(token)
        if self.result.logprobs is not None and self._sampler.logprob is not None:
            self.result.logprobs.append(self._sampler.logprob)
        piece = self._stopping.push(token)
        self.result.text += piece
        self.result.finish_reason = self._stopping.finish_reason or ""
        if self.recall is not None:
            self.result.recall_bytes_read = self.recall.bytes_read
            if self.done:
                self.recall = None
        return piece

    def give_cache(self) -> Cache:
        """Hands the cache over; the sequence no longer holds it."""
        if self.cache is None:
            raise RuntimeError("the sequence has no cache: it was not prefilled, or is part of a batch")
        cache, self.cache = self.cache, None
        return cache


def prompt_of(model: Model, question: Question) -> Prompt:
    """The prompt of a question. Of its pictures only the sizes are read, and only if the prompt depends on them."""
    media = seen_by(model.manifest, question)
    if question.messages:
        return build_chat(question.messages, media, model.tokenizer, model.manifest)
    return build_prompt(
        question.prompt,
        media,
        tokenizer=model.tokenizer,
        chat_template=model.manifest.chat_template,
        max_positions=model.manifest.text.max_positions,
        raw=question.raw,
    )


def seen_by(manifest: Manifest, question: Question, others: int = 0) -> tuple[Medium, ...]:
    """A question's pictures and videos, laid out; `others` pictures stand in earlier turns.

    Raises:
        ImageError: a video for a model that takes none, or one that can't be opened.
    """
    image = manifest.image
    pictures = lay_out(sizes_of(question.images, image), image, others)
    clips = clips_of(manifest, question)
    videos = [lay_out_video(len(chosen), manifest.video) for _, chosen in clips if manifest.video is not None]
    return media_of(pictures, image, videos, manifest.video)


def clips_of(manifest: Manifest, question: Question) -> list[Clip]:
    """A question's videos, opened, and which frames of each the model is shown. The same errors."""
    facts = manifest.video
    if facts is None:
        if question.videos:
            advice = "; give the frames as pictures" if takes_pictures(manifest.image) else ""
            raise ImageError(f"this model takes no videos{advice}")
        return []
    return [(video, video.chosen(facts, question.frames)) for video in question.videos]


def sizes_of(pictures: abc.Sequence[Any], image: ImageFacts) -> list[tuple[int, int]]:
    """Width and height of each picture; the tile's, without a look at the picture, if every picture is one tile."""
    if isinstance(image.rule, Fixed | NoPictures):
        return [(image.width, image.height)] * len(pictures)
    return [picture_size(picture) for picture in pictures]


def prepare(
    model: Model,
    question: Question,
    prompt: Prompt | None = None,
    limits: Limits | None = None,
    read: Read = read_visuals,
    more: bool = False,
) -> Sequence:
    """Checks a question and makes its sequence; `prompt` is the prompt if the caller has made it already.

    `limits` applies to the pictures, which `read` decodes, one at a time. `more` says whether later questions are
    answered from what this one leaves in the cache; the policy `auto` asks.

    Raises:
        PromptError, ImageError, PolicyError, SamplingError: the question is invalid.
    """
    if not isinstance(question, Question):
        raise PromptError(f"{quoted(question)} is not a Question, which vlkv.Question(prompt) makes")
    policy = with_recall(resolve(question.policy), question.recall)
    given = None if question.budget is None else check_budget(question.budget, policy)
    pruner = resolve_prune(question.prune)
    if pruner is not None and any(reached(model.manifest.text, None)):
        raise PolicyError(
            f"prune {question.prune!r} does not fit this model, whose layers have sliding windows; leave it out"
        )
    sampling = Sampling(
        temperature=question.temperature,
        top_k=question.top_k,
        top_p=question.top_p,
        seed=question.seed,
        max_new_tokens=question.max_new_tokens,
        stop=question.stop,
        frequency_penalty=question.frequency_penalty,
        presence_penalty=question.presence_penalty,
        logit_bias=question.logit_bias,
        logprobs=question.logprobs,
        json_schema=question.json_schema,
        repetition_penalty=question.repetition_penalty,
        no_repeat_ngram_size=question.no_repeat_ngram_size,
        min_new_tokens=question.min_new_tokens,
        suppress_tokens=question.suppress_tokens,
        bad_words_ids=question.bad_words_ids,
    )
    _check_ids(sampling, model.manifest.text.vocab)
    prompt = prompt_of(model, question) if prompt is None else prompt
    length, most, vocab = len(prompt.token_ids), model.manifest.text.max_positions, model.manifest.text.vocab
    beyond = prompt.token_ids[prompt.token_ids >= vocab]
    if len(beyond):
        raise PromptError(
            f"the tokenizer makes token {beyond[0]}; the model's embedding table has {vocab} rows"
        )
    max_new_tokens = min(sampling.max_new_tokens, most - length)
    if max_new_tokens < 1:
        raise PromptError(f"the prompt's {length} tokens fill all {most} positions")
    policy = taken(policy, prompt, model.manifest, model.backend, more)
    check_fit(policy, model.manifest, model.backend)
    budget = default_budget(policy, length, not prompt.pictures) if given is None else given
    clips = clips_of(model.manifest, question)
    new = len(question.images) + sum(len(chosen) for _, chosen in clips)
    layouts = prompt.pictures[len(prompt.pictures) - new :]
    images = read(question.images, clips, layouts, model.manifest, limits or Limits())
    grammar = None if sampling.json_schema is None else model.grammars.json(sampling.json_schema)
    sequence = Sequence(prompt, images, policy, budget, max_new_tokens, sampling, question.scores, grammar)
    sequence.pruner = pruner
    return sequence


def _check_ids(sampling: Sampling, vocab: int) -> None:
    """Raises `SamplingError` for a token beyond the vocabulary, and where no token would be left."""
    suppressed = sampling.suppress_tokens or ()
    words = [token for word in sampling.bad_words_ids or () for token in word]
    named = {"logit_bias": sampling.logit_bias, "suppress_tokens": suppressed, "bad_words_ids": words}
    for name, tokens in named.items():
        wrong = [token for token in tokens if token >= vocab]
        if wrong:
            raise SamplingError(f"{name} names token {wrong[0]}; the vocabulary has {vocab}")
    single = [word[0] for word in sampling.bad_words_ids or () if len(word) == 1]
    if len({*suppressed, *single}) >= vocab:
        raise SamplingError(f"suppress_tokens and bad_words_ids name all {vocab} tokens; leave some")
