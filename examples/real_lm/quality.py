"""`make quality`: measures the effect of each weight format and cache dtype on a real language model's answers.

$ python -m examples.real_lm.quality -o out/real_lm --record export/vlkv_export/quality.json

17 texts (prose, code, a chat) are teacher-forced. The first 32 tokens of each are prefilled, with products of many
rows, and the next 256 are fed one by one; of engines with prompts in bfloat16 each of the 256 is the last of a prompt
instead. Each format is compared with float32: how often the first choice is the same,
and by how much the perplexity differs. The file of --record, which `vlkv build` prints from, is written if every format
was measured on all tokens. Exits with 1 if a format exceeds its limits in LIMITS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from vlkv import Engine
from vlkv.backend.cache import Cache, join
from vlkv.bench.report import processor
from vlkv.generation.forced import token_loss
from vlkv.storage.manifest import default_precision
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine
from vlkv_export.quality import Figures, Row

from .texts import texts

PROMPT, FORCED = 32, 256
CHUNK = 17
"""The fewest tokens of a call whose products are those of many rows."""
MODEL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Arm:
    """The options of an engine, the least agreement, and the largest change of perplexity that it may have.

    An empty precision is the default one of the weights' format.
    """

    weights: str
    precision: str = ""
    cache: str = "float32"
    agreement: float = 1.0
    perplexity: float = 0.0

    @property
    def name(self) -> str:
        """The name of its folder, also used in the table."""
        prompts = f", prompts in {self.precision}" if self.precision else ""
        return self.weights + prompts + (f", cache in {self.cache}" if self.cache != "float32" else "")


REFERENCE = Arm("float32")
LIMITS = (
    Arm("bfloat16", agreement=0.99, perplexity=0.003),
    Arm("bfloat16", "bfloat16", agreement=0.99, perplexity=0.003),
    Arm("int8", agreement=0.99, perplexity=0.003),
    Arm("int8", "bfloat16", agreement=0.99, perplexity=0.003),
    Arm("int4", agreement=0.95, perplexity=0.04),
    Arm("float32", cache="float16", agreement=0.995, perplexity=0.003),
    Arm("float32", cache="bfloat16", agreement=0.995, perplexity=0.003),
    Arm("float32", cache="int8", agreement=0.99, perplexity=0.003),
    Arm("int8", cache="int8", agreement=0.98, perplexity=0.006),
)


def pieces(engine: Engine, forced: int = FORCED) -> np.ndarray:
    """Returns token ids `[B, PROMPT + forced + 1]`, one text per row. The last token is only predicted, never fed."""
    length = PROMPT + forced + 1
    rows = [engine.model.tokenizer.encode(text) for kind in texts().values() for text in kind]
    return np.array([row[:length] for row in rows if len(row) >= length], np.int64)


def forced_choices(engine: Engine, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the first choices `[B, S]` after each fed token, and the mean loss of the tokens that follow."""
    model = engine.model
    rows, steps = len(tokens), tokens.shape[1] - PROMPT - 1
    caches = []
    for row in tokens:
        cache = Cache.empty(model.manifest.text, tokens.shape[1], model.backend.store)
        embeds = model.embedding.rows(row[:PROMPT])[np.newaxis]
        positions = np.arange(PROMPT, dtype=np.int64)[np.newaxis]
        model.backend.extend(embeds, positions, cache, np.zeros((1, 0), np.int64), True)
        caches.append(cache)
    decoding = model.backend.steps(join(caches))
    choices, loss = np.zeros((rows, steps), np.int64), 0.0
    active = np.ones(rows, bool)
    for step in range(steps):
        at = PROMPT + step
        logits = decoding.step(model.embedding.rows(tokens[:, at]), np.full(rows, at, np.int64), active)
        choices[:, step] = logits.argmax(axis=1)
        loss += sum(float(token_loss(logits[i : i + 1], int(tokens[i, at + 1]))[0]) for i in range(rows))
    return choices, loss / choices.size


def prompted_choices(engine: Engine, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """As `forced_choices`, with each token as the last one of a prompt, which runs in chunks of CHUNK tokens.

    A prompt's answer does not depend on its chunks, so that every CHUNK-th prompt is the beginning of the next one.
    """
    model = engine.model
    steps = tokens.shape[1] - PROMPT - 1
    choices, loss = np.zeros((len(tokens), steps), np.int64), 0.0
    for i, row in enumerate(tokens):
        for first in range(min(CHUNK, steps)):
            cache = Cache.empty(model.manifest.text, tokens.shape[1], model.backend.store)
            begin = 0
            for step in range(first, steps, CHUNK):
                end = PROMPT + step + 1
                embeds = model.embedding.rows(row[begin:end])[np.newaxis]
                positions = np.arange(begin, end, dtype=np.int64)[np.newaxis]
                logits, _ = model.backend.extend(embeds, positions, cache, np.zeros((1, 0), np.int64), True)
                choices[i, step] = logits[0].argmax()
                loss += float(token_loss(logits, int(row[end]))[0])
                begin = end
    return choices, loss / choices.size


def engine_of(arm: Arm, folder: Path) -> Engine:
    """Returns the engine of an arm, and builds it on first use."""
    target = folder / arm.name.replace(", ", "-").replace(" ", "-")
    if not (target / "manifest.json").exists():
        if not (folder / "graphs" / "manifest.json").exists():
            if not (folder / "checkpoint" / "config.json").exists():
                from .make_checkpoint import main as make_checkpoint

                make_checkpoint(folder / "checkpoint")
            export_checkpoint(folder / "checkpoint", folder / "graphs")
        build_engine(
            folder / "graphs",
            target,
            weights=arm.weights,
            prompt_precision=arm.precision or None,
            kv_dtype=arm.cache,
        )
    return Engine.load(target, verify=False)


def says_paris(engine: Engine) -> bool:
    """Returns whether the engine knows the capital of France."""
    answer = engine.generate("What is the capital of France?", policy="full", max_new_tokens=12)
    return "Paris" in answer.text


def way(arm: Arm) -> Callable[[Engine, np.ndarray], tuple[np.ndarray, float]]:
    """How an arm's tokens are fed."""
    return prompted_choices if arm.precision == "bfloat16" else forced_choices


def measure(folder: Path, forced: int = FORCED, only: str = "") -> list[dict[str, object]]:
    """Returns one row per arm whose name contains `only`."""
    reference = engine_of(REFERENCE, folder)
    tokens = pieces(reference, forced)
    chosen = [arm for arm in LIMITS if only in arm.name]
    references = {feed: feed(reference, tokens) for feed in {way(arm) for arm in chosen}}
    found: list[dict[str, object]] = []
    for arm in chosen:
        engine = engine_of(arm, folder)
        expected, base = references[way(arm)]
        choices, loss = way(arm)(engine, tokens)
        agreement, change = float((choices == expected).mean()), float(np.expm1(loss - base))
        paris = says_paris(engine)
        ok = agreement >= arm.agreement and abs(change) <= arm.perplexity and paris
        found.append(
            {
                "name": arm.name,
                "tokens": int(choices.size),
                "agreement": agreement,
                "perplexity": float(np.exp(loss)),
                "change": change,
                "row": Row(
                    arm.weights,
                    arm.precision or default_precision(arm.weights),
                    arm.cache,
                    int(choices.size),
                    agreement,
                    arm.agreement,
                    change,
                    arm.perplexity,
                ),
                "paris": paris,
                "within": ok,
            }
        )
        print(
            f"| {arm.name} | {agreement:.2%} (>= {arm.agreement:.1%}) | {change:+.2%} (<= {arm.perplexity:.1%}) | "
            f"{'Paris' if paris else 'not Paris'} | {'yes' if ok else 'no'} |",
            flush=True,
        )
    return found


def record(found: list[dict[str, object]], file: Path) -> None:
    """Writes the figures that `vlkv build` prints."""
    figures = Figures(
        MODEL,
        datetime.now(UTC).date().isoformat(),
        processor(),
        tuple(row["row"] for row in found),
    )
    file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")


def main() -> int:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--record", type=Path, help="the file of figures that vlkv build prints from")
    parser.add_argument("--only", default="", help="measure the formats whose name contains this text")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print("| weights | first choice equal | perplexity | the capital of France | within the gate |")
    print("|---|---|---|---|---|", flush=True)
    found = measure(arguments.output, only=arguments.only)
    (arguments.output / "quality.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if arguments.record is not None and len(found) == len(LIMITS):
        record(found, arguments.record)
    return 0 if all(row["within"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
