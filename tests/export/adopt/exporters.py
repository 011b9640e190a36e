"""Run by a process of its own, with an exporter's folder on its path: graphs of checkpoints, by the real exporter.

PYTHONPATH=.venv/exporters/genai python exporters.py genai CHECKPOINT TARGET PRECISION [CHECKPOINT TARGET PRECISION]...
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path


def genai(checkpoint: str, target: str, precision: str, *extra: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        words = ["-m", checkpoint, "-i", checkpoint, "-o", target, "-p", precision, "-e", "cpu", "-c", cache]
        sys.argv = ["builder", *words, *(("--extra_options", *extra) if extra else ())]
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


def optimum(checkpoint: str, target: str, precision: str) -> None:
    from optimum.exporters.onnx import main_export

    assert precision == "fp32"
    main_export(checkpoint, target, task="text-generation-with-past")


def merged(checkpoint: str, target: str, precision: str) -> None:
    """Optimum's decoders without and with past, and its own merging of both into one graph with an If."""
    from optimum.exporters.onnx.model_configs import LlamaOnnxConfig
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    model.config.save_pretrained(target)
    _merge(model, LlamaOnnxConfig, Path(target))


def llava(checkpoint: str, target: str, precision: str) -> None:
    """A LLaVA in the files of onnx-community: the decoder by Optimum, of embeddings, merged; the others by torch.

    onnx-community's own scripts are no package.
    """
    import torch
    from optimum.exporters.onnx.model_configs import LlamaOnnxConfig
    from safetensors.torch import load_file
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(checkpoint)).eval()
    model.load_state_dict(_renamed(load_file(f"{checkpoint}/model.safetensors")))
    hidden = model.config.text_config.hidden_size

    class OfEmbeddings(LlamaOnnxConfig):
        @property
        def inputs(self):
            found = dict(super().inputs)
            return {"inputs_embeds": found.pop("input_ids"), **found}

        def generate_dummy_inputs(self, framework="pt", **settings):
            self._behaviour = None
            found = TextInputs(self)(framework, **settings)
            return {"inputs_embeds": torch.randn(*found.pop("input_ids").shape, hidden), **found}

    class TextInputs:
        def __init__(self, config):
            self.config = LlamaOnnxConfig(
                config._config,
                "text-generation",
                use_past=config.use_past,
                use_past_in_inputs=config.use_past_in_inputs,
            )

        def __call__(self, framework, **settings):
            return self.config.generate_dummy_inputs(framework, **settings)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.lm_head = model.model.language_model, model.lm_head
            self.config, self.dtype, self.device = model.config.text_config, model.dtype, model.device

        def forward(self, inputs_embeds, attention_mask, position_ids, past_key_values=None, **settings):
            found = self.model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=True,
            )
            return {"logits": self.lm_head(found[0]), "past_key_values": found.past_key_values}

    _merge(Decoder(), OfEmbeddings, Path(target))
    _towers(model, target)
    for path in Path(checkpoint).glob("*.j*"):
        shutil.copy(path, target)


def multimodal(checkpoint: str, target: str, precision: str) -> None:
    """A LLaVA in the files of onnxruntime-genai's multimodal models: the builder makes the decoder, of embeddings.

    `embedding.onnx` and `vision.onnx` are traced by torch, as in genai's example scripts for its own model types, of
    which LLaVA is none.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

    folder, config = Path(target), LlavaConfig.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    stored = load_file(f"{checkpoint}/model.safetensors")
    text = LlamaForCausalLM(config.text_config)
    start = "language_model."
    text.load_state_dict({k.removeprefix(start): v for k, v in stored.items() if k.startswith(start)})
    with tempfile.TemporaryDirectory() as place:
        text.save_pretrained(place)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(checkpoint) / name, place)
        genai(place, target, precision, "exclude_embeds=true")

    class Embedding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = text.get_input_embeddings()

        def forward(self, input_ids, image_features):
            rows = self.table(input_ids)
            places = (input_ids == config.image_token_index).unsqueeze(-1).expand_as(rows)
            return rows.masked_scatter(places, image_features)

    hidden = config.text_config.hidden_size
    ids = torch.full((1, 3), config.image_token_index)
    _trace(
        Embedding(),
        {"input_ids": ids, "image_features": torch.randn(3, hidden)},
        "inputs_embeds",
        folder / "embedding.onnx",
    )
    _towers(model, target, "vision.onnx")
    path = folder / "genai_config.json"
    facts = json.loads(path.read_text())
    facts["model"] |= {"embedding": {"filename": "embedding.onnx"}, "vision": {"filename": "vision.onnx"}}
    path.write_text(json.dumps(facts))
    for found in Path(checkpoint).glob("*.j*"):
        shutil.copy(found, target)


def _renamed(state):
    """Names of transformers 5's files in the names of version 4, which would start at random what it does not find."""
    places = (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower.vision_model."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    )
    made = {}
    for name, tensor in state.items():
        old, new = next(pair for pair in places if name.startswith(pair[0]))
        made[new + name.removeprefix(old)] = tensor
    return made


def _merge(model, config, folder: Path) -> None:
    from optimum.exporters.onnx import export_models

    pairs = {
        f"decoder{kind}_model": (
            model,
            config(model.config, "text-generation", use_past=True, use_past_in_inputs=bool(kind)),
        )
        for kind in ("", "_with_past")
    }
    names = [f"{name}.onnx" for name in pairs]
    export_models(pairs, folder, output_names=names)
    pairs["decoder_model"][1].post_process_exported_models(folder, pairs, names)
    for name in names:
        (folder / name).unlink()


def _towers(model, folder: str, vision: str = "vision_encoder.onnx") -> None:
    """The tower and, for onnx-community, `embed_tokens.onnx`, with the inputs and outputs of both exporters."""
    import torch

    class Vision(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = model.model

        def forward(self, pixel_values):
            # get_image_features cuts its result into a list, whose length a trace fixes
            states = self.whole.vision_tower(pixel_values, output_hidden_states=True).hidden_states
            return self.whole.multi_modal_projector(states[model.config.vision_feature_layer][:, 1:])

    size = model.config.vision_config.image_size
    _trace(Vision(), {"pixel_values": torch.randn(2, 3, size, size)}, "image_features", Path(folder) / vision)
    if vision == "vision_encoder.onnx":
        ids = torch.zeros(1, 3, dtype=torch.int64)
        _trace(
            model.get_input_embeddings(),
            {"input_ids": ids},
            "inputs_embeds",
            Path(folder) / "embed_tokens.onnx",
        )


def _trace(module, given, made: str, path: Path) -> None:
    import torch

    open_dims = {
        name: {axis: f"{name}.{axis}" for axis in range(2 if name == "input_ids" else 1)} for name in given
    }
    torch.onnx.export(
        module,
        tuple(given.values()),
        str(path),
        input_names=list(given),
        output_names=[made],
        dynamic_axes=open_dims
        | {made: {0: "first"} if made == "image_features" else {0: "first", 1: "second"}},
        dynamo=False,
        opset_version=18,
    )


if __name__ == "__main__":
    export = {"genai": genai, "optimum": optimum, "merged": merged, "llava": llava, "multimodal": multimodal}[
        sys.argv[1]
    ]
    given = sys.argv[2:]
    for place in range(0, len(given), 3):
        export(*given[place : place + 3])
