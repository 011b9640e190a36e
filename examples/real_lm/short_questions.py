"""Short questions without a picture to a real language model, under every named policy and no budget given.

$ python -m examples.real_lm.short_questions ENGINE

ENGINE is of the checkpoint that `make_checkpoint.py` writes. Prints a table: how many answers hold the right word, and
how many are the full cache's, token for token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlkv import POLICIES, Engine, Question

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Italy?": "Rome",
    "How many days are in a week?": "7|seven",
    "What is the largest planet of the solar system?": "Jupiter",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What color is the sky on a clear day?": "blue",
    "What is the chemical formula of water?": "H2O|H₂O",
    "What is the opposite of hot?": "cold",
    "On which continent is Egypt?": "Africa",
}


def right(text: str, words: str) -> bool:
    """Whether the text holds one of the words, which `|` divides."""
    return any(word.lower() in text.lower() for word in words.split("|"))


def table(engine: Engine, tokens: int) -> str:
    """Answers of at most so many tokens, as a Markdown table."""
    lines = [
        "| policy | kept of the prompts | right | as with the full cache | tokens until they differ |",
        "| --- | --- | --- | --- | --- |",
    ]
    full = [[0]] * len(QUESTIONS)
    for name in ("full", *(name for name in POLICIES if name != "full")):
        asked = [Question(text, policy=name, max_new_tokens=tokens) for text in QUESTIONS]
        results = engine.generate_batch(asked)
        answers = [result.token_ids for result in results]
        full = answers if name == "full" else full
        kept = min(min(result.kept_tokens) / result.prompt_tokens for result in results)
        correct = sum(right(one.text, words) for one, words in zip(results, QUESTIONS.values(), strict=True))
        same = [mine == theirs for mine, theirs in zip(answers, full, strict=True)]
        apart = [
            next((n for n, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y)))
            for x, y in zip(answers, full, strict=True)
            if x != y
        ]
        lines.append(f"| {name} | {kept:.0%} | {correct} | {sum(same)} | {min(apart) if apart else ''} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--tokens", type=int, default=64, help="most of an answer")
    arguments = parser.parse_args()
    print(table(Engine.load(arguments.engine), arguments.tokens))


if __name__ == "__main__":
    main()
