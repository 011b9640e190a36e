"""`Engine`: an opened engine directory, which answers questions about pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vlkv.errors import EngineError, PromptError, quoted
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
    """An opened engine directory; `Engine.load` makes one. Calls are independent of each other.

    Attributes:
        directory: the engine directory.
        model: its opened parts.
    """

    def __init__(self, directory: Path, model: Model) -> None:
        self.directory = directory
        self.model = model

    @property
    def manifest(self) -> Manifest:
        """The directory's manifest."""
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
        tuned: str | Path | None = None,
    ) -> Engine:
        """Opens an engine directory.

        Args:
            directory: the directory that `vlkv build` wrote.
            verify: whether to compare every file's hash with the manifest; sizes are always compared.
            threads: threads of one operator; 0 uses all cores.
            plugin: `libvlkv_tensorrt.so`, for a TensorRT engine built with it.
            device: `cpu` or `cuda`, for an ONNX Runtime engine; TensorRT engines run on a GPU.
                `cuda:1` is the second GPU.
            tuned: a folder of `vlkv tune ENGINE`, whose operators run if they fit this engine and processor.

        Raises:
            EngineError: it is not an engine, has another format version, or has a missing or changed file.
        """
        if not isinstance(directory, str | os.PathLike):
            raise EngineError(f"{quoted(directory)} is no path of an engine directory")
        folder, library = Path(directory), Path(plugin) if plugin else None
        other = Path(tuned) if tuned else None
        model = Model.open(folder, verify=verify, threads=threads, plugin=library, device=device, tuned=other)
        return cls(folder, model)

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
            prompt: the question; `<image>` in it marks the place of a picture, else pictures precede the text.
            images: pictures as paths, encoded bytes, or Pillow images.
            **settings: the other fields of `Question`: `policy` (a name or a `Policy`; else `DEFAULT_POLICY`),
                `budget` (share of the prompt's cache to keep; 0.1, but 64 tokens a layer, 256 without a picture;
                for `full`, and for a text under `elastic`, 1), `max_new_tokens`, `temperature`
                (0 is greedy), `top_k`, `top_p`, `seed`, `stop`, `raw` (no chat template), `scores` (whether the
                result is to hold them), and `videos`: each a path, bytes, an array uint8 `[frames,height,width,3]`, or
                a list of pictures; `<video>` in the prompt says where one goes. `frames` is how many are taken of each
                at most, evenly; else those that the checkpoint's processor takes, or all.

        Raises:
            PromptError, ImageError, PolicyError, SamplingError: an argument is invalid.
        """
        return self.generate_batch([Question(prompt, images, **settings)])[0]

    def stream(
        self, prompt: str, images: Sequence[Any] = (), *, progress: Progress | None = None, **settings: Any
    ) -> Stream:
        """Streams the answer to one prompt. `progress` is called with the prompt tokens done and their total."""
        asked = sequences.prepare(self.model, Question(prompt, images, **settings))
        return Stream(generate(self.model, [asked], progress))

    def generate_batch(self, questions: Sequence[Question]) -> list[Result]:
        """Answers several prompts, each under its own policy; all decode together."""
        if not isinstance(questions, Iterable):
            raise PromptError(f"{quoted(questions)} is no list of questions")
        asked = [sequences.prepare(self.model, question) for question in questions]
        results: dict[int, Result] = {}
        if asked:
            for number, _, result in generate(self.model, asked):
                results[number] = result
        return [results[number] for number in range(len(asked))]

    def answers(self, asked: Sequence[sequences.Sequence], *, endless: bool = False) -> Iterator[Piece]:
        """Answers prepared sequences, one token at a time: see `vlkv.generation.batch.generate`.

        With `endless`, end tokens don't end an answer, so each has exactly `max_new_tokens` tokens.
        """
        model = self.model
        if endless:
            tokens = msgspec.structs.replace(model.manifest.tokens, eos=())
            model = replace(model, manifest=msgspec.structs.replace(model.manifest, tokens=tokens))
        return generate(model, asked)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.model.tokenizer.decode(token_ids)

    def forced(
        self, question: Question | sequences.Sequence, tokens: Sequence[int], *, attention: bool = False
    ) -> Forced:
        """Runs given tokens as the answer (teacher forcing): logits of each step under the question's policy.

        Args:
            question: a question or a prepared sequence; `max_new_tokens` and sampling have no effect.
            tokens: token ids, at most as many as there are positions behind the prompt.
            attention: whether each step includes its token's attention; only for policies with decode `append`.
        """
        asked = sequences.prepare(self.model, question) if isinstance(question, Question) else question
        return Forced(self.model, asked, tokens, attention)

    def read(self, question: Question) -> SharedPrompt:
        """Prefills a prompt once, to be answered under any number of policies; the question's policy has no effect."""
        asked = sequences.prepare(self.model, replace(question, policy="full", budget=None))
        return SharedPrompt(self.model, asked)

    def scheduler(self, **settings: Any) -> Scheduler:
        """Serves many requests at once, in a thread of its own; `settings` are the arguments of `Scheduler`.

        Raises:
            EngineError: the engine's caches lie on a device and are not updated in place.
        """
        from vlkv.scheduler import Scheduler

        return Scheduler(self.model, **settings)

    def prompt(self, question: Question) -> Prompt:
        """The prompt of a question, with its token ids."""
        return sequences.prompt_of(self.model, question)

    def words(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token, for display."""
        return [self.model.tokenizer.piece(token) for token in token_ids]

    def chat(
        self, policy: str | Policy = DEFAULT_POLICY, budget: float | None = None, keep: Keep = "compressed"
    ) -> Conversation:
        """A conversation in which later questions refer to the same pictures.

        Args:
            policy: a name or a `Policy`, for the whole conversation.
            budget: the share of the prompt's cache to keep.
            keep: `compressed` answers later questions from the tokens kept for the first; `reusable` keeps the full
                keys and values in memory and compresses them again for each question.
        """
        found = resolve(policy)
        share = None if budget is None else check_budget(budget, found)
        return Conversation(self.model, found, share, keep)
