"""`vlkv run`: answers a question about pictures and videos on the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vlkv.cli.console import details, notes, progress, write_json
from vlkv.cli.options import (
    Device,
    EngineFolder,
    Frames,
    NoVerify,
    OneBudget,
    Pictures,
    Plugin,
    Prune,
    Raw,
    Recall,
    Threads,
    Tuned,
    Videos,
)
from vlkv.cli.prompts import Prompt, PromptFile, read_prompt
from vlkv.engine import Engine
from vlkv.errors import SamplingError
from vlkv.generation.batch import Stream
from vlkv.generation.question import MAX_NEW_TOKENS
from vlkv.policies.builtin import DEFAULT_POLICY

LONG_PROMPT = 2048

CHECKPOINT = "the checkpoint's"


def run(
    engine: EngineFolder,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    image: Pictures = None,
    video: Videos = None,
    frames: Frames = None,
    policy: Annotated[
        str, typer.Option(help="How the cache is compressed; vlkv policies lists them.")
    ] = DEFAULT_POLICY,
    budget: OneBudget = None,
    prune: Prune = None,
    recall: Recall = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = MAX_NEW_TOKENS,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the top tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; repeatable.")] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1, earlier tokens are less likely.", show_default=CHECKPOINT),
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="N-grams of this size never repeat.", show_default=CHECKPOINT)
    ] = None,
    min_new_tokens: Annotated[
        int | None, typer.Option(help="Least tokens to generate.", show_default=CHECKPOINT)
    ] = None,
    suppress_token: Annotated[
        list[int] | None,
        typer.Option(
            help="A token id that never comes; may be given several times.", show_default=CHECKPOINT
        ),
    ] = None,
    bad_word_ids: Annotated[
        list[str] | None,
        typer.Option(
            help="Token ids such as 5,17 that never come in a row; several times.", show_default=CHECKPOINT
        ),
    ] = None,
    raw: Raw = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    no_verify: NoVerify = False,
    threads: Threads = 0,
    device: Device = "cpu",
    plugin: Plugin = None,
    tuned: Tuned = None,
) -> None:
    """Answer a question about pictures and videos."""
    question = read_prompt(prompt, prompt_file)
    with progress(data=False) as bar:
        bar.step("opening the engine")
        opened = Engine.load(
            engine, verify=not no_verify, threads=threads, device=device, plugin=plugin, tuned=tuned
        )

        def prefilled(done: int, total: int) -> None:
            if total > LONG_PROMPT and done < total:
                bar.step("reading the prompt")
                bar.total(total)
                bar.advance(done)

        bar.step("reading the prompt")
        stream = opened.stream(
            question,
            list(image or ()),
            progress=prefilled,
            policy=policy,
            budget=budget,
            prune=prune,
            recall=recall,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop or ()),
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            min_new_tokens=min_new_tokens,
            suppress_tokens=suppress_token or None,
            bad_words_ids=[_ids(word) for word in bad_word_ids or ()] or None,
            raw=raw,
            videos=list(video or ()),
            frames=frames,
        )
        pieces = iter(stream)
        first = next(pieces, "")
    if json:
        for _ in pieces:
            pass
        write_json(stream.result.to_dict())
        details(opened.model.backend.notes)
        return
    sys.stdout.write(first)
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    notes().print(summary(stream), style="dim", soft_wrap=True)
    details(opened.model.backend.notes)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SamplingError(f"--bad-word-ids {text!a:.80} is no list of token ids, such as 5,17") from None


def summary(stream: Stream) -> str:
    """One line: kept tokens, memory and speed."""
    result = stream.result
    spent = result.seconds
    share = result.cache_bytes / result.cache_bytes_full
    before = spent.vision + spent.prefill + spent.compress
    pruned = f", {result.pruned_tokens} left out before prefill" if result.pruned_tokens else ""
    recalled = f" and {result.recall_bytes / 2**20:.2f} MiB of evicted tokens" if result.recall_bytes else ""
    return (
        f"{result.policy}: {sum(result.kept_tokens) // len(result.kept_tokens)} of {result.prompt_tokens} prompt "
        f"tokens a layer{pruned}, cache {result.cache_bytes / 2**20:.2f} MiB "
        f"({share:.0%} of full){recalled}, first token after {before:.2f} s, "
        f"{result.tokens_per_second:.0f} tokens/s"
    )
