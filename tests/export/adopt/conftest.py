"""Tiny decoders, exported by the real exporters, once a session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXPORTERS = ROOT / ".venv" / "exporters"
VOCAB = 320
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TEXTS = ("llama", "llama-tied", "mistral", "qwen2", "phi3")
EXPORTED = {
    "genai": [
        *((text, "fp32") for text in TEXTS),
        ("llama", "fp16"),
        ("llama", "int4"),
        ("llama-tied", "int4"),
    ],
    "optimum": [("llama", "fp32"), ("mistral", "fp32"), ("qwen2", "fp32")],
    "merged": [("llama", "fp32")],
}
PICTURES = {"llava": [("tiny_vlm", "fp32")], "multimodal": [("tiny_vlm", "fp32")]}
"""LLaVAs in ONNX files alone: onnx-community's files and onnxruntime-genai's."""
PACKAGES = {"merged": "optimum", "llava": "optimum", "multimodal": "genai"}
TINY = ROOT / "examples" / "tiny_vlm" / "checkpoint"


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote, and the checkpoint that it read."""

    folder: Path
    checkpoint: Path


def checkpoint(kind: str, folder: Path) -> Path:
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Phi3Config,
        Phi3ForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(len(kind))
    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM, {"head_dim": 16}),
        "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
        "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
        "phi3": (Phi3Config, Phi3ForCausalLM, {"original_max_position_embeddings": 256}),
    }
    config, model, more = classes[kind]
    made = model(config(**SIZES, **more))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.15 if parameter.ndim > 1 else 1.0)
    made.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples" / "tiny_vlm" / "checkpoint" / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Folders by exporter, text model and precision."""
    base = tmp_path_factory.mktemp("exported")
    checkpoints = {kind: checkpoint(kind, base / kind) for kind in TEXTS} | {"tiny_vlm": TINY}
    made: dict[str, dict[tuple[str, str], Exported]] = {}

    def get(exporter: str, kind: str, precision: str) -> Exported:
        packages = EXPORTERS / PACKAGES.get(exporter, exporter)
        if not packages.is_dir():
            pytest.skip(f"no {packages}: `make test` installs it")
        if exporter not in made:
            wanted: dict[tuple[str, str], Path] = {
                one: base / f"{exporter}-{one[0]}-{one[1]}" for one in (EXPORTED | PICTURES)[exporter]
            }
            words = [
                word for (name, p), to in wanted.items() for word in (str(checkpoints[name]), str(to), p)
            ]
            run = subprocess.run(
                [sys.executable, Path(__file__).with_name("exporters.py"), exporter, *words],
                env=os.environ | {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
                timeout=600,
            )
            made[exporter] = {}
            assert run.returncode == 0, run.stderr[-2000:]
            made[exporter] = {one: Exported(to, checkpoints[one[0]]) for one, to in wanted.items()}
            for one in made[exporter].values():
                shutil.copy(one.checkpoint / "tokenizer.json", one.folder / "tokenizer.json")
        return made[exporter][kind, precision]

    return get
