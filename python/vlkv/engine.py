"""`Engine`: an engine directory, opened, that answers questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlkv.backend.cache import HOST
from vlkv.errors import EngineError, PromptError
from vlkv.generation.batch import Request, Stream, generate
from vlkv.generation.chat import Conversation, Keep
from vlkv.generation.forced import Forced
from vlkv.generation.fork import Reading
from vlkv.generation.prefill import Job, Progress
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.generation.sampling import Sampling
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.inputs.image import open_image
from vlkv.inputs.prompt import Prompt, build_prompt
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.policies.builtin import DEFAULT_POLICY, resolve
from vlkv.policies.observe import check_threshold
from vlkv.policies.policy import Policy, check_budget, default_budget
from vlkv.storage import manifest as manifests

if TYPE_CHECKING:
    from vlkv.backend.base import Backend
    from vlkv.scheduler import Scheduler


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
    def load(
        cls,
        directory: str | Path,
        *,
        verify: bool = True,
        threads: int = 0,
        plugin: str | Path | None = None,
        device: str = "cpu",
    ) -> Engine:
        """Opens an engine directory.

        Args:
            directory: what `vlkv build` wrote.
            verify: whether every file's hash is compared with the manifest's; sizes always are.
            threads: threads of one operator; 0 takes all cores.
            plugin: `libvlkv_tensorrt.so`, for a TensorRT engine built with it.
            device: `cpu` or `cuda`, for an ONNX Runtime engine; TensorRT's are of a GPU.

        Raises:
            EngineError: no engine, one of another format version, or one with a missing or changed file.
        """
        if device not in ("cpu", "cuda"):
            raise EngineError(f"unknown device {device!r}; known: cpu, cuda")
        folder = Path(directory)
        manifest = manifests.read(folder)
        if manifest.kind == "lowered":
            raise EngineError(
                f"{folder} holds lowered graphs for other builders; vlkv build makes engines of graphs"
            )
        if manifest.kind != "engine":
            raise EngineError(
                f"{folder} holds graphs; make an engine of them with `vlkv build {folder} -o ENGINE`"
            )
        manifests.verify(folder, manifest, hashes=verify)
        if manifest.backend != "onnxruntime":
            from vlkv.backend.tensorrt import open_engine

            return cls(folder, manifest, open_engine(folder, manifest, Path(plugin) if plugin else None))
        if device == "cuda":
            from vlkv.backend.onnxruntime_device import open_on_cuda

            return cls(folder, manifest, open_on_cuda(folder, manifest))
        from vlkv.backend.onnxruntime import OnnxRuntimeBackend

        return cls(folder, manifest, OnnxRuntimeBackend(folder, manifest, threads))

    def generate(self, prompt: str, images: Sequence[Any] = (), **settings: Any) -> Result:
        """Answers one prompt.

        Args:
            prompt: the question; `<image>` in it says where a picture goes, else pictures come first.
            images: pictures as paths, encoded bytes, or Pillow images.
            **settings: the other fields of `Question`: `policy` (a name or a `Policy`; else `DEFAULT_POLICY`),
                `budget` (share of the prompt's cache to keep; 0.1, for `full` 1), `max_new_tokens`, `temperature`
                (0 is greedy), `top_k`, `top_p`, `seed`, `stop`, `raw` (no chat template), and `scores` (whether the
                result is to hold them).

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

    def answers(
        self, requests: Sequence[Request], *, endless: bool = False
    ) -> Iterator[tuple[int, str, Result]]:
        """Answers prepared prompts, a token at a time: see `vlkv.generation.batch.generate`.

        `endless` lets answers go past end tokens, so that each has exactly the tokens that were asked for.
        """
        manifest = self.manifest
        if endless:
            manifest = msgspec.structs.replace(
                manifest, tokens=msgspec.structs.replace(manifest.tokens, eos=())
            )
        return generate(requests, self._backend, self._embedding, self._tokenizer, manifest)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return self._tokenizer.decode(token_ids)

    def forced(
        self, question: Question | Request, tokens: Sequence[int], *, attention: bool = False
    ) -> Forced:
        """Runs given tokens as the answer: logits of each step under the question's policy.

        Args:
            question: or a prepared request; `max_new_tokens` and sampling have no effect.
            tokens: ids, at most as many as there are positions behind the prompt.
            attention: whether each step tells what its token attended to; for policies that only append.
        """
        request = question if isinstance(question, Request) else self._prepare(question)
        job = replace(request.job, room=max(1, len(tokens)))
        return Forced(job, tokens, self._backend, self._embedding, self.manifest, attention)

    def read(self, question: Question) -> Reading:
        """Reads a prompt once, to be answered under any number of policies; the question's own has no effect."""
        request = self._prepare(replace(question, policy="full", budget=None))
        return Reading(request, self._backend, self._embedding, self._tokenizer, self.manifest)

    def scheduler(self, **settings: Any) -> Scheduler:
        """Many requests at once, in a thread of its own; `settings` are those of `Scheduler`: slots, memory, queue.

        Raises:
            EngineError: the engine's caches lie on a device; slots are views into arrays of the host.
        """
        from vlkv.scheduler import Scheduler

        if self._backend.store is not HOST:
            raise EngineError(
                f"{self.directory} runs on a device; many requests at once need an engine for onnxruntime on the CPU"
            )
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

    def words(self, token_ids: Sequence[int]) -> list[str]:
        """What each token says, for a person to read."""
        return [self._tokenizer.piece(token) for token in token_ids]

    def chat(
        self, policy: str | Policy = DEFAULT_POLICY, budget: float | None = None, keep: Keep = "compressed"
    ) -> Conversation:
        """A conversation, whose later questions are about the same pictures.

        Args:
            policy: a name or a `Policy`, for the whole conversation.
            budget: share of the prompt's cache to keep.
            keep: `compressed` answers later questions from what was kept for the first; `reusable` holds the full
                keys and values in memory and compresses them anew for each question.
        """
        found = resolve(policy)
        share = default_budget(found) if budget is None else check_budget(budget, found)
        parts = self._backend, self._embedding, self._tokenizer, self.manifest
        return Conversation(*parts, self._prepare, found, share, keep)

    def _prepare(self, question: Question, prompt: Prompt | None = None) -> Request:
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
        prompt = self.prompt(question) if prompt is None else prompt
        room = min(sampling.max_new_tokens, self.manifest.text.max_positions - len(prompt.token_ids))
        if room < 1:
            raise PromptError(
                f"the prompt's {len(prompt.token_ids)} tokens fill all {self.manifest.text.max_positions} positions"
            )
        check_threshold(policy, self.manifest)
        images = [open_image(picture) for picture in question.images]
        return Request(Job(prompt, images, policy, budget, room, question.scores), sampling)

    def _run(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> Iterator[tuple[int, str, Result]]:
        return generate(requests, self._backend, self._embedding, self._tokenizer, self.manifest, progress)
