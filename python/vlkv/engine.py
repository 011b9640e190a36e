"""`Engine`: an engine directory, opened, that answers questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlkv.generation import sequence as sequences
from vlkv.generation.batch import Stream, generate
from vlkv.generation.chat import Conversation, Keep
from vlkv.generation.decode import Piece
from vlkv.generation.forced import Forced
from vlkv.generation.fork import SharedPrompt
from vlkv.generation.prefill import Progress
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.inputs.prompt import Prompt
from vlkv.model import Model
from vlkv.policies.builtin import DEFAULT_POLICY, resolve
from vlkv.policies.policy import Policy, check_budget
from vlkv.storage.manifest import Manifest

if TYPE_CHECKING:
    from vlkv.scheduler import Scheduler


class Engine:
    """An engine directory, opened. Make one with `Engine.load`; calls are independent of each other.

    Attributes:
        directory: where it lies.
        model: what it holds, opened.
    """

    def __init__(self, directory: Path, model: Model) -> None:
        self.directory = directory
        self.model = model

    @property
    def manifest(self) -> Manifest:
        """What the directory holds."""
        return self.model.manifest

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
            device: `cpu` or `cuda`, for an ONNX Runtime engine; TensorRT's are of a GPU. `cuda:1` is the second GPU.

        Raises:
            EngineError: no engine, one of another format version, or one with a missing or changed file.
        """
        folder, library = Path(directory), Path(plugin) if plugin else None
        return cls(folder, Model.open(folder, verify=verify, threads=threads, plugin=library, device=device))

    def close(self) -> None:
        """Gives back what the engine holds, a device's memory first of all. It answers no more."""
        self.model.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, prompt: str, images: Sequence[Any] = (), **settings: Any) -> Result:
        """Answers one prompt.

        Args:
            prompt: the question; `<image>` in it says where a picture goes, else pictures come first.
            images: pictures as paths, encoded bytes, or Pillow images.
            **settings: the other fields of `Question`: `policy` (a name or a `Policy`; else `DEFAULT_POLICY`),
                `budget` (share of the prompt's cache to keep; 0.1 but 64 tokens a layer at least, for `full` 1),
                `max_new_tokens`, `temperature`
                (0 is greedy), `top_k`, `top_p`, `seed`, `stop`, `raw` (no chat template), and `scores` (whether the
                result is to hold them).

        Raises:
            PromptError, ImageError, PolicyError, SamplingError: what was given can't be used.
        """
        return self.generate_batch([Question(prompt, images, **settings)])[0]

    def stream(
        self, prompt: str, images: Sequence[Any] = (), *, progress: Progress | None = None, **settings: Any
    ) -> Stream:
        """The same, piece by piece. `progress` is called with the prompt tokens done and in all."""
        asked = sequences.prepare(self.model, Question(prompt, images, **settings))
        return Stream(generate(self.model, [asked], progress))

    def generate_batch(self, questions: Sequence[Question]) -> list[Result]:
        """Answers several prompts, each under its own policy; they decode together."""
        asked = [sequences.prepare(self.model, question) for question in questions]
        results: dict[int, Result] = {}
        if asked:
            for number, _, result in generate(self.model, asked):
                results[number] = result
        return [results[number] for number in range(len(asked))]

    def answers(self, asked: Sequence[sequences.Sequence], *, endless: bool = False) -> Iterator[Piece]:
        """Answers prepared sequences, a token at a time: see `vlkv.generation.batch.generate`.

        `endless` lets answers go past end tokens, so that each has exactly the tokens that were asked for.
        """
        model = self.model
        if endless:
            tokens = msgspec.structs.replace(model.manifest.tokens, eos=())
            model = replace(model, manifest=msgspec.structs.replace(model.manifest, tokens=tokens))
        return generate(model, asked)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return self.model.tokenizer.decode(token_ids)

    def forced(
        self, question: Question | sequences.Sequence, tokens: Sequence[int], *, attention: bool = False
    ) -> Forced:
        """Runs given tokens as the answer: logits of each step under the question's policy.

        Args:
            question: or a prepared sequence; `max_new_tokens` and sampling have no effect.
            tokens: ids, at most as many as there are positions behind the prompt.
            attention: whether each step tells what its token attended to; for policies that only append.
        """
        asked = sequences.prepare(self.model, question) if isinstance(question, Question) else question
        return Forced(self.model, asked, tokens, attention)

    def read(self, question: Question) -> SharedPrompt:
        """Prefills a prompt once, to be answered under any number of policies; the question's own has no effect."""
        asked = sequences.prepare(self.model, replace(question, policy="full", budget=None))
        return SharedPrompt(self.model, asked)

    def scheduler(self, **settings: Any) -> Scheduler:
        """Many requests at once, in a thread of its own; `settings` are those of `Scheduler`: slots, memory, queue.

        Raises:
            EngineError: the engine's caches lie on a device and are not updated in place.
        """
        from vlkv.scheduler import Scheduler

        return Scheduler(self.model, **settings)

    def prompt(self, question: Question) -> Prompt:
        """The token ids of a question."""
        return sequences.prompt_of(self.model, question)

    def words(self, token_ids: Sequence[int]) -> list[str]:
        """What each token says, for a person to read."""
        return [self.model.tokenizer.piece(token) for token in token_ids]

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
        share = None if budget is None else check_budget(budget, found)
        return Conversation(self.model, found, share, keep)
