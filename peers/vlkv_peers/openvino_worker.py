"""OpenVINO GenAI's paged pipeline, with the full cache or with cache eviction.

Modes `full` and `evict` compute in float32 with a 16-bit cache; `default` and `default-evict` leave the precision to
OpenVINO, which chooses by processor. `int8`, `int8-evict`, `int4` and `int4-evict` do so too, with weights that
optimum-intel's exporter compresses by NNCF at its own settings, except that int4's groups may be smaller than 128 where
a matrix needs it.

optimum-intel converts the checkpoint on first use. The pipeline takes text and pictures and tokenises them itself.
Several prompts go to the pipeline of continuous batching, which begins to decode prompts before the last is prefilled.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from continuous import batched
from PIL import Image
from worker import cores, fingerprint, serve

KEPT = 0.1
BLOCK = 32
"""Slots per block of the paged cache; the sizes of eviction are multiples of it."""
CACHE_GIB = 4


def converted(checkpoint: Path, folder: Path, mode: str) -> Path:
    """The converted checkpoint, in a folder beside the environment, named by its path and its weights' time stamp."""
    weights = mode.split("-")[0]
    weights = weights if weights in {"int8", "int4"} else "fp32"  # the exporter's names
    target: Path = folder / "models" / fingerprint(checkpoint, *([] if weights == "fp32" else [weights]))
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += [
            "--model",
            str(checkpoint),
            "--task",
            "image-text-to-text",
            "--weight-format",
            weights,
            str(part),
        ]
        if weights == "int4":
            command += ["--group-size-fallback", "adjust"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise RuntimeError(f"optimum-cli: {lines[-1] if lines else done.returncode}")
        part.rename(target)
    return target


def options(mode: str, threads: int) -> dict[str, Any]:
    """OpenVINO's properties of a mode."""
    found: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if mode in {"full", "evict"}:
        found |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}
    return found


class OpenvinoPeer:
    """A pipeline. With eviction it is recreated for a prompt of another length, as its sizes are numbers of tokens."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._threads, self._mode = cores(settings["threads"]), settings["mode"]
        self._folder = converted(Path(settings["checkpoint"]), Path(settings["folder"]), self._mode)
        self._evict = self._mode.endswith("evict")
        self._shape = 0, False
        self._pipeline: Any = None if self._evict else self._open(*self._shape)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `worker`."""
        length, batch = len(request["token_ids"][0]), len(request["texts"])
        shape = (length if self._evict else 0), batch > 1
        if shape != self._shape:
            self._pipeline = None
            self._pipeline, self._shape = self._open(*shape), shape
        pictures = [
            [openvino.Tensor(np.asarray(Image.open(path).convert("RGB"))[np.newaxis])]
            for path in request["pictures"]
        ]
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = request["new_tokens"], True
        config.do_sample, config.apply_chat_template = False, False
        start = perf_counter()
        if batch == 1:
            found = self._pipeline.generate(request["texts"][0], images=pictures[0], generation_config=config)
        else:
            found = self._pipeline.generate(
                request["texts"], images=pictures, generation_config=[config] * batch
            )[0]
        whole = perf_counter() - start
        metrics = found.perf_metrics
        if abs(metrics.get_num_input_tokens() - length) > 2:
            raise ValueError(
                f"the prompt became {metrics.get_num_input_tokens()} tokens here, {length} there"
            )
        first = metrics.get_ttft().mean / 1e3
        raw = [micros / 1e6 for micros in metrics.raw_metrics.m_durations]
        if batch == 1:
            steps = raw[1:] if len(raw) == request["new_tokens"] else raw
        else:
            waited, steps = batched(
                raw, list(metrics.raw_metrics.m_batch_sizes), batch, request["new_tokens"]
            )
            first += waited
        return {"first": first, "steps": steps, "whole": whole}

    def _open(self, length: int, several: bool) -> Any:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.enable_prefix_caching = False
        if self._evict:
            blocks = max(3, round(length * KEPT / BLOCK))
            start, recent = BLOCK, BLOCK * max(1, blocks // 4)
            scheduler.use_cache_eviction = True
            scheduler.cache_eviction_config = genai.CacheEvictionConfig(
                start, recent, blocks * BLOCK, genai.AggregationMode.NORM_SUM
            )
        found = options(self._mode, self._threads)
        if several:
            return genai.ContinuousBatchingPipeline(str(self._folder), scheduler, "CPU", found, {}, {})
        found |= {"scheduler_config": scheduler, "ATTENTION_BACKEND": "PA"}
        return genai.VLMPipeline(str(self._folder), "CPU", **found)


if __name__ == "__main__":
    serve(OpenvinoPeer, ("openvino-genai", "openvino", "optimum-intel", "nncf", "transformers"))
