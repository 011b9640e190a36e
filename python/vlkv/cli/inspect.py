"""`vlkv inspect`: the kept patches of a picture, as a page and as PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import answers, progress
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
    Videos,
)
from vlkv.cli.paths import path
from vlkv.cli.prompts import Prompt, PromptFile, read_prompt
from vlkv.policies.builtin import DEFAULT_POLICY


def inspect(
    engine: EngineFolder,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write to.", show_default=False, parser=path)
    ],
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    image: Pictures = None,
    video: Videos = None,
    frames: Frames = None,
    policy: Annotated[str, typer.Option(help="How the cache is compressed.")] = DEFAULT_POLICY,
    budget: OneBudget = None,
    prune: Prune = None,
    recall: Recall = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 64,
    raw: Raw = False,
    no_verify: NoVerify = False,
    threads: Threads = 0,
    device: Device = "cpu",
    plugin: Plugin = None,
) -> None:
    """Show which patches and words each layer keeps."""
    from vlkv.engine import Engine
    from vlkv.eval.inspect_files import write
    from vlkv.eval.inspection import inspect as look
    from vlkv.eval.settings import Setting
    from vlkv.generation.question import Question
    from vlkv.policies.auto import taken
    from vlkv.policies.builtin import resolve
    from vlkv.policies.policy import check_budget, default_budget, with_recall
    from vlkv.pruning.methods import resolve_prune

    question = read_prompt(prompt, prompt_file)
    found = with_recall(resolve(policy), recall)
    resolve_prune(prune)
    given = None if budget is None else check_budget(budget, found)
    with progress(data=False) as bar:
        bar.step("opening the engine")
        opened = Engine.load(engine, verify=not no_verify, threads=threads, device=device, plugin=plugin)
        bar.step("answering")
        asked = Question(
            question,
            tuple(image or ()),
            max_new_tokens=max_new_tokens,
            raw=raw,
            videos=tuple(video or ()),
            frames=frames,
            prune=prune,
        )
        whole = opened.prompt(asked)
        found = taken(found, whole, opened.manifest, opened.model.backend)
        share = default_budget(found, len(whole.token_ids), not whole.pictures) if given is None else given
        seen = look(opened, asked, Setting(found, share))
        bar.step("drawing")
        written = write(seen, output)
    out = answers()
    out.print(f"full cache: {seen.full.text}", soft_wrap=True)
    out.print(f"{seen.policy}, budget {seen.budget:g}: {seen.small.text}", soft_wrap=True)
    out.print(f"stays whatever its score: {found.protected}", soft_wrap=True)
    for line in seen.counts():
        out.print(line, soft_wrap=True)
    out.print(f"{written[0]} and {len(written) - 1} pictures", soft_wrap=True)
