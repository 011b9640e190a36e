"""Transformers' `generate` as users call it: eager or SDPA attention, the full cache or a press of kvpress."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging
from worker import cores, serve

COMPRESSION = 0.9
UNUSED = ".post_layernorm."
"""LLaVA uses an inner layer's features, so checkpoints may omit this last norm."""


class Marks(BaseStreamer):
    """Records when each token arrives; the first call is for the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Receives a prompt, or one token of each prompt."""
        self.times.append(perf_counter())

    def end(self) -> None:
        """Does nothing."""


def plain(name: str) -> str:
    """A tensor's name without the parts that differ between versions of transformers."""
    name = name.replace("language_model.lm_head.", "lm_head.").removeprefix("model.")
    name = name.replace("vision_tower.vision_model.", "vision_tower.")
    return name.replace("language_model.model.", "language_model.")


def load_model(folder: Path, attention: str) -> Any:
    """Loads the model in float32; tensors whose names this version does not know are assigned by their plain names.

    Without that, a tower whose tensors are not found would silently have random weights.
    """
    found: Any = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    model, info = found
    missing = {name for name in info["missing_keys"] if UNUSED not in name}
    if missing:
        files: dict[str, tuple[Path, str]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                files |= {plain(name): (path, name) for name in file.keys()}  # noqa: SIM118
        state = {}
        for name in missing:
            if plain(name) not in files:
                raise ValueError(f"this version of transformers finds no tensor {name} in the checkpoint")
            path, stored = files[plain(name)]
            with safe_open(path, "pt") as file:
                state[name] = file.get_tensor(stored).float()
        model.load_state_dict(state, strict=False)
    return model.eval()


class TorchPeer:
    """A model, and the press that compresses its cache, if any."""

    def __init__(self, settings: dict[str, Any]) -> None:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(cores(settings["threads"]))
        mode = settings["mode"]
        self._press = None
        if mode == "snapkv":
            from kvpress import SnapKVPress

            self._press = SnapKVPress(compression_ratio=COMPRESSION)
        self._model = load_model(Path(settings["checkpoint"]), "eager" if mode == "eager" else "sdpa")

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `worker`."""
        marks = Marks()
        config = self._model.generation_config
        config.eos_token_id, config.pad_token_id = None, 0
        ids = torch.tensor(request["token_ids"])
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.from_numpy(np.load(request["pixels"])),
        }
        press = nullcontext() if self._press is None else self._press(self._model)
        start = perf_counter()
        with torch.inference_mode(), press:
            found = self._model.generate(
                **inputs,
                generation_config=config,
                max_new_tokens=request["new_tokens"],
                do_sample=False,
                streamer=marks,
                return_dict_in_generate=True,
            )
        whole = perf_counter() - start
        times = marks.times[1:]
        layers = found.past_key_values.layers
        return {
            "first": times[0] - start,
            "steps": np.diff(times).tolist(),
            "whole": whole,
            "cache_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
            "tokens": found.sequences[:, ids.shape[1] :].tolist(),
        }


if __name__ == "__main__":
    serve(TorchPeer, ("transformers", "torch", "kvpress"))
