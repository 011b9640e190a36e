"""llama.cpp with the text model in one of its formats; the mode is the format: `f16`, `q8_0` or `q4_k_m`.

The checkpoint is written as GGUF on first use and quantised by llama.cpp's own function. The prompt is text of equal
length: the image token's id stands at each of the picture's places, and the vision tower does not run. The cache is
float16 and all other settings are llama.cpp's defaults. Prompts are prefilled one after the other and decode together.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from time import perf_counter
from typing import Any

import gguf_files
import llama_cpp as cpp
import numpy as np
from worker import cores, fingerprint, serve

FORMATS = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
"""llama.cpp's `llama_ftype` by mode."""
CACHE_BYTES = 2


def quantised(checkpoint: Path, folder: Path, mode: str) -> Path:
    """The GGUF file of a mode, in a folder beside the environment, named by path and time stamp of the weights."""
    target = folder / "models" / f"{fingerprint(checkpoint)}-{mode}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        whole, part = target.with_suffix(".f32"), target.with_suffix(".part")
        try:
            gguf_files.write(checkpoint, whole)
            params = cpp.llama_model_quantize_default_params()
            params.ftype = FORMATS[mode]
            if cpp.llama_model_quantize(str(whole).encode(), str(part).encode(), ctypes.byref(params)):
                raise RuntimeError(f"llama_model_quantize failed for {mode}")
        finally:
            whole.unlink(missing_ok=True)
        part.rename(target)
    return target


class LlamaCppPeer:
    """A model and a context, which is made again for more prompts or longer ones."""

    def __init__(self, settings: dict[str, Any]) -> None:
        cpp.llama_backend_init()
        path = quantised(Path(settings["checkpoint"]), Path(settings["folder"]), settings["mode"])
        self._threads = cores(settings["threads"])
        self._model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path.name}")
        self._vocab = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._room = 0, 0

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `worker`."""
        prompts, new = request["token_ids"], request["new_tokens"]
        length = max(map(len, prompts)) + new
        self._make_room(len(prompts), length)
        start = perf_counter()
        answers = [[self._prefill(row, prompt)] for row, prompt in enumerate(prompts)]
        marks = [perf_counter()]
        for step in range(new - 1):
            inputs = [
                (answer[-1], len(prompt) + step, row)
                for row, (answer, prompt) in enumerate(zip(answers, prompts, strict=True))
            ]
            self._decode(inputs, set(range(len(inputs))))
            for row, answer in enumerate(answers):
                answer.append(self._choice(row))
            marks.append(perf_counter())
        model = self._model
        width = cpp.llama_model_n_embd(model) // cpp.llama_model_n_head(model)
        slot = 2 * cpp.llama_model_n_layer(model) * cpp.llama_model_n_head_kv(model) * width * CACHE_BYTES
        return {
            "first": marks[0] - start,
            "steps": np.diff(marks).tolist(),
            "whole": marks[-1] - start,
            "cache_bytes": slot * sum(len(prompt) + new - 1 for prompt in prompts),
            "tokens": answers,
        }

    def _make_room(self, prompts: int, length: int) -> None:
        if self._context is None or self._room[0] != prompts or self._room[1] < length:
            if self._context is not None:
                cpp.llama_free(self._context)
            params = cpp.llama_context_default_params()
            params.n_ctx = prompts * -(-length // 256) * 256
            params.n_seq_max = prompts
            params.n_threads = params.n_threads_batch = self._threads
            self._context = cpp.llama_init_from_model(self._model, params)
            if not self._context:
                raise RuntimeError(f"llama.cpp makes no context of {params.n_ctx} slots")
            self._room = prompts, length
            self._rows = cpp.llama_n_batch(self._context)
            self._batch = cpp.llama_batch_init(self._rows, 0, 1)
        cpp.llama_memory_clear(cpp.llama_get_memory(self._context), True)

    def _prefill(self, row: int, prompt: list[int]) -> int:
        for begin in range(0, len(prompt), self._rows):
            part = prompt[begin : begin + self._rows]
            inputs = [(token, begin + place, row) for place, token in enumerate(part)]
            last = begin + len(part) == len(prompt)
            self._decode(inputs, {len(part) - 1} if last else set())
        return self._choice(-1)

    def _decode(self, inputs: list[tuple[int, int, int]], wanted: set[int]) -> None:
        """Runs tokens `(id, position, prompt)`; `wanted` are the places whose logits are needed."""
        batch = self._batch
        batch.n_tokens = len(inputs)
        for place, (token, position, row) in enumerate(inputs):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            batch.logits[place] = place in wanted
        code = cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}")

    def _choice(self, place: int) -> int:
        logits = cpp.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())


if __name__ == "__main__":
    serve(LlamaCppPeer, ("llama-cpp-python", "gguf"))
