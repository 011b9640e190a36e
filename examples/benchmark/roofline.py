"""Estimates the times of a GPU from bytes, operations and the rates of the device. This is a model, not a measurement.

python examples/benchmark/roofline.py out/bench-gpu.json         # rates and kernel times that `make bench-gpu` wrote
python examples/benchmark/roofline.py --copy 3.0 --matrix 798    # TB/s and TFLOP/s; kernels at their floors

Prefill takes the time of its matrix products and of causal attention at the matrix rate. A decode step takes the time
of its bytes at the copy rate: the weights once and each prompt's kept cache once, as `VlkvAttend` reads it, with
nothing written anew. Compression is Score and Evict of each layer, with measured times if a file has them.

Vision, launches and the host are left out. Real runs are slower, most of all with short prompts and small batches. The
table also gives the memory of weights and caches and how many prompts fit at once. A batch that does not fit has no
speed on a device of that memory.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

WIDTH = 2
"""Bytes of a float16 or bfloat16 number."""
ROWS = 64
"""The observation window of Score, as in `make bench-gpu`."""


@dataclass(frozen=True)
class Model:
    """The sizes of a text model. `measured` is its name in the file that `make bench-gpu` writes."""

    name: str
    measured: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int

    @property
    def weights(self) -> int:
        """The number of weights in the matrices that each token is multiplied with, including the head."""
        dim = self.hidden // self.heads
        layer = 2 * self.hidden * (self.heads + self.kv_heads) * dim + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.hidden * self.vocab

    def memory(self, slots: float, batch: int) -> float:
        """Returns the bytes of the weights and of `batch` caches with `slots` slots per layer."""
        return WIDTH * self.weights + batch * slots * self.layers * self.slot

    def at_once(self, slots: float, memory: float) -> int:
        """Returns how many such caches fit beside the weights."""
        return max(0, int((memory - WIDTH * self.weights) // (slots * self.layers * self.slot)))

    @property
    def slot(self) -> int:
        """The bytes of one token in the cache of one layer."""
        return 2 * self.kv_heads * (self.hidden // self.heads) * WIDTH


MODELS = (
    Model("LLaVA 1.5 7B", "7B (32 heads)", 32, 4096, 32, 32, 11008, 32064),
    Model("LLaVA 1.6 Mistral 7B", "7B (8 KV heads)", 32, 4096, 32, 8, 14336, 32064),
    Model("LLaVA 1.6 34B", "34B (8 KV heads)", 60, 7168, 56, 8, 20480, 64064),
)


@dataclass(frozen=True)
class Device:
    """Bytes and operations per second, and the seconds of kernels by (kernel, model, slots) if they were measured."""

    name: str
    copy: float
    matrix: float
    kernels: dict[tuple[str, str, int], float] = field(default_factory=dict)
    memory: float = 80e9

    def kernel(self, name: str, model: Model, slots: int, floor: float) -> float:
        """Returns a kernel's seconds, interpolated between measured lengths, or its floor if none was measured."""
        known = sorted(
            (n, t) for (kernel, of, n), t in self.kernels.items() if (kernel, of) == (name, model.measured)
        )
        if not known:
            return floor
        return max(floor, float(np.interp(slots, *zip(*known, strict=True))))


def prefill(model: Model, device: Device, slots: int) -> float:
    """Returns the seconds for one prompt.

    Each weight and token take two operations; attention takes half a square, twice.
    """
    products = 2 * model.weights * slots
    attention = 2 * 2 * model.layers * model.hidden * slots**2 / 2
    return (products + attention) / device.matrix


def compress(model: Model, device: Device, slots: int, kept: float) -> float:
    """Returns the seconds for one prompt.

    In each layer Score of `ROWS` rows reads the keys, and Evict copies what is kept.
    """
    operations = 2 * 2 * ROWS * model.hidden * slots / device.matrix
    score = max(model.slot / 2 * slots / device.copy, operations)
    evict = 2 * model.slot * slots * kept / device.copy
    layer = device.kernel("score", model, slots, score) + device.kernel("evict", model, slots, evict)
    return model.layers * layer


def step(model: Model, device: Device, slots: float, batch: int) -> float:
    """Returns the seconds of a decode step of `batch` prompts with `slots` cache slots each."""
    return model.memory(slots, batch) / device.copy


def line(model: Model, device: Device, slots: int, batch: int, kept: float, tokens: int) -> dict[str, object]:
    """Returns the row of one model, prompt length and batch size, in milliseconds."""
    first, cut = batch * prefill(model, device, slots), batch * compress(model, device, slots, kept)
    full, small = (step(model, device, share * slots + tokens / 2, batch) for share in (1.0, kept))
    ends = [share * slots + tokens for share in (1.0, kept)]
    held = [model.memory(end, batch) for end in ends]
    most = [model.at_once(end, device.memory) for end in ends]
    return {
        "model": model.name,
        "prompt tokens": slots,
        "batch": batch,
        "prefill ms": first * 1e3,
        "compress ms": cut * 1e3,
        "ms/token, full": full * 1e3,
        "ms/token, kept": small * 1e3,
        "decoding": full / small,
        f"{tokens} tokens, end to end": (first + tokens * full) / (first + cut + tokens * small),
        "GB, full / kept": f"{held[0] / 1e9:.3g} / {held[1] / 1e9:.3g}",
        f"at once in {device.memory / 1e9:g} GB": f"{most[0]} / {most[1]}",
        "fits": " / ".join("yes" if size <= device.memory else "no" for size in held),
    }


def device_of(path: Path) -> Device:
    """Reads the float16 lines that `make bench-gpu` wrote."""
    told = json.loads(path.read_text())
    rates = told["rates_per_ms"]
    kernels = {
        (one["kernel"], one["model"], one["slots"]): one["milliseconds"] / 1e3
        for one in told["results"]
        if one["dtype"] == "float16"
    }
    return Device(told["device"], rates["copy"] * 1e3, rates["torch.float16"] * 1e3, kernels)


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="?", help="the file that make bench-gpu wrote")
    parser.add_argument("--copy", type=float, default=3.0, help="copy rate in TB/s, read and written")
    parser.add_argument("--matrix", type=float, default=798.0, help="rate of float16 products in TFLOP/s")
    parser.add_argument("--memory", type=float, default=80.0, help="memory of the device in GB")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[2048, 8192, 32768, 131072])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--new-tokens", type=int, default=100)
    options = parser.parse_args(arguments)
    given = f"a device of {options.copy:g} TB/s and {options.matrix:g} TFLOP/s"
    device = (
        replace(device_of(options.measured), memory=options.memory * 1e9)
        if options.measured
        else Device(given, options.copy * 1e12, options.matrix * 1e12, memory=options.memory * 1e9)
    )
    print(f"MODEL, not a measurement: {device.name}, {options.budget:.0%} kept\n")
    lines = [
        line(model, device, slots, batch, options.budget, options.new_tokens)
        for model in MODELS
        for slots in options.prompt_tokens
        for batch in options.batch
    ]
    print(f"| {' | '.join(lines[0])} |\n|{' --- |' * len(lines[0])}")
    for one in lines:
        shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in one.values())
        print(f"| {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
