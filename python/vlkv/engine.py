"""`Engine`: an engine directory, opened, that answers questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkv import manifest as manifests
from vlkv.embedding import TokenEmbedding
from vlkv.errors import EngineError, PromptError
from vlkv.generate import Request, generate
from vlkv.image import open_image
from vlkv.policy import Policy, check_budget, default_budget, resolve
from vlkv.prefill import Job, Progress
from vlkv.prompt import Prompt, build_prompt
from vlkv.result import Result
from vlkv.sampling import Sampling
from vlkv.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vlkv.backend.base import Backend
    from vlkv.scheduler import Scheduler

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """One prompt of a batch; the fields are the arguments of `Engine.generate`."""

    prompt: str
    images: Sequence[Any] = ()
    policy: str | Policy = "vl-cache"
    budget: float | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    raw: bool = False


class Stream:
    """An answer as it comes: iterate for pieces of text; `result` grows along and is whole at the end."""

    def __init__(self, pieces: Iterator[tuple[int, str, Result]]) -> None:
        self._pieces = pieces
        self.result = Result()

    def __iter__(self) -> Iterator[str]:
        for _, piece, result in self._pieces:
            self.result = result
            if piece:
                yield piece


class Engine:
    """An engine directory, opened. Make one with `Engine.load`; calls are independent of each other.

    Attributes:
        directory: where it lies.
        manifest: what it holds.
    """

    def __init__(self, directory: Path, manifest: manifests.Manifest, backend: Backend) -> None:
        self.directory = directory
        self.manifest = manifest
        self._backend = backend
        self._embedding = TokenEmbedding(directory, manifest.embedding)
        self._tokenizer = Tokenizer.load(directory, manifest.tokens)

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True, threads: int = 0) -> Engine:
        """Opens an engine directory.

        Args:
            directory: what `vlkv build` wrote.
            verify: whether every file's hash is compared with the manifest's; sizes always are.
            threads: threads of one operator; 0 takes all cores.

        Raises:
            EngineError: no engine, one of another format version, or one with a missing or changed file.
        """
        folder = Path(directory)
        manifest = manifests.read(folder)
        if manifest.kind != "engine":
            raise EngineError(
                f"{folder} holds graphs; make an engine of them with `vlkv build {folder} -o ENGINE`"
            )
        manifests.verify(folder, manifest, hashes=verify)
        if manifest.backend != "onnxruntime":
            raise EngineError(f"{folder} is built for {manifest.backend}; this runtime drives onnxruntime")
        from vlkv.backend.onnxruntime import OnnxRuntimeBackend

        return cls(folder, manifest, OnnxRuntimeBackend(folder, manifest, threads))

    def generate(self, prompt: str, images: Sequence[Any] = (), **settings: Any) -> Result:
        """Answers one prompt.

        Args:
            prompt: the question; `<image>` in it says where a picture goes, else pictures come first.
            images: pictures as paths, encoded bytes, or Pillow images.
            **settings: the other fields of `Question`: `policy` (a name or a `Policy`), `budget` (share of the
                prompt's cache to keep; 0.1, for `full` 1), `max_new_tokens`, `temperature` (0 is greedy),
                `top_k`, `top_p`, `seed`, `stop`, and `raw` (no chat template).

        Raises:
            PromptError, ImageError, PolicyError, SamplingError: what was given can't be used.
        """
        return self.generate_batch([Question(prompt, images, **settings)])[0]

    def stream(
        self, prompt: str, images: Sequence[Any] = (), *, progress: Progress | None = None, **settings: Any
    ) -> Stream:
        """The same, piece by piece. `progress` is told of prompt tokens done and in all."""
        request = self._prepare(Question(prompt, images, **settings))
        return Stream(self._run([request], progress))

    def generate_batch(self, questions: Sequence[Question]) -> list[Result]:
        """Answers several prompts, each under its own policy; they decode together."""
        requests = [self._prepare(question) for question in questions]
        results: dict[int, Result] = {}
        if requests:
            for number, _, result in self._run(requests):
                results[number] = result
        return [results[number] for number in range(len(requests))]

    def scheduler(self, **settings: Any) -> Scheduler:
        """Many requests at once, in a thread of its own; `settings` are those of `Scheduler`: slots, memory, queue."""
        from vlkv.scheduler import Scheduler

        parts = (self._backend, self._embedding, self._tokenizer, self.manifest)
        return Scheduler(*parts, self._prepare, **settings)

    def prompt(self, question: Question) -> Prompt:
        """The token ids of a question."""
        return build_prompt(
            question.prompt,
            len(question.images),
            image=self.manifest.image,
            tokenizer=self._tokenizer,
            chat_template=self.manifest.chat_template,
            max_positions=self.manifest.text.max_positions,
            raw=question.raw,
        )

    def _prepare(self, question: Question) -> Request:
        policy = resolve(question.policy)
        budget = default_budget(policy) if question.budget is None else check_budget(question.budget, policy)
        sampling = Sampling(
            temperature=question.temperature,
            top_k=question.top_k,
            top_p=question.top_p,
            seed=question.seed,
            max_new_tokens=question.max_new_tokens,
            stop=question.stop,
        )
        prompt = self.prompt(question)
        room = min(sampling.max_new_tokens, self.manifest.text.max_positions - len(prompt.token_ids))
        if room < 1:
            raise PromptError(
                f"the prompt's {len(prompt.token_ids)} tokens fill all {self.manifest.text.max_positions} positions"
            )
        images = [open_image(picture) for picture in question.images]
        return Request(Job(prompt, images, policy, budget, room), sampling)

    def _run(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> Iterator[tuple[int, str, Result]]:
        return generate(requests, self._backend, self._embedding, self._tokenizer, self.manifest, progress)
