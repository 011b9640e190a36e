"""`make bench-ops`: measures the native operators, what they replace, and a prompt's prefill.

The two sides of a pair are timed in alternation, so a machine whose speed drifts slows both. Ratios are medians over
the pairs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np

HEADS, KV_HEADS, DIM, SLOTS, ROWS = 32, 8, 128, 32768, 64
PAIRS = 3

Row = dict[str, str | float]


def score_call(implementation: str) -> Callable[[], object]:
    """Returns a call without arguments that scores one layer of a 7B-shaped model."""
    from vlkv import ops

    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, HEADS, ROWS, DIM), np.float32)
    key = rng.standard_normal((1, KV_HEADS, SLOTS, DIM), np.float32)
    position = np.arange(SLOTS - ROWS, SLOTS)[np.newaxis]
    return lambda: ops.score(query, key, position, implementation=implementation)


def seconds(call: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def extra_megabytes(implementation: str) -> float:
    """Returns how much a call raises the peak memory of a separate process that has made a small call before."""
    command = [sys.executable, __file__, "--peak-of", implementation]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_extra(implementation: str) -> None:
    """Prints the growth of this process's peak memory, in MB."""
    from vlkv import ops

    small = np.zeros((1, 2, 1, 8), np.float32)
    ops.score(small, small, np.zeros((1, 1), np.int64), implementation=implementation)
    call = score_call(implementation)
    before = peak_megabytes()
    call()
    print(peak_megabytes() - before)


def peak_megabytes() -> float:
    """Returns the peak memory of the process so far, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def against_body() -> Row:
    """Compares native Score with its ONNX body in ONNX Runtime, with the same number of threads."""
    native, body = score_call("native"), score_call("reference")
    native(), body()
    pairs = [(seconds(native), seconds(body)) for _ in range(PAIRS)]
    return {
        "figure": f"Score, Hq {HEADS}, Hkv {KV_HEADS}, D {DIM}, C {SLOTS}, W {ROWS}, float32",
        "native ms": median(pair[0] for pair in pairs) * 1e3,
        "ONNX body ms": median(pair[1] for pair in pairs) * 1e3,
        "ratio": median(b / a for a, b in pairs),
        "native extra MB": extra_megabytes("native"),
        "ONNX body extra MB": extra_megabytes("reference"),
    }


def against_group_query_attention() -> Row:
    """Compares the attention of one token in ONNX Runtime: its own operator and vlkv's, both in place."""
    operators = {name: attention_call(name) for name in ("GroupQueryAttention", "Attend")}
    for call in operators.values():
        call()
    pairs = [[seconds(call) for call in operators.values()] for _ in range(5 * PAIRS)]
    return {
        "figure": f"Attend, Hq {HEADS}, Hkv {KV_HEADS}, D {DIM}, C {SLOTS}, float32",
        "native ms": median(pair[1] for pair in pairs) * 1e3,
        "GroupQueryAttention ms": median(pair[0] for pair in pairs) * 1e3,
        "ratio": median(theirs / own for theirs, own in pairs),
    }


def attention_call(operator: str) -> Callable[[], object]:
    """Returns a call without arguments that attends with one token over one layer's cache of a 7B-shaped model."""
    import onnx_ir as ir
    import onnxruntime as ort

    from vlkv.ops.session_options import session_options

    float32, int32 = ir.DataType.FLOAT, ir.DataType.INT32
    new, cache = (1, 1, KV_HEADS * DIM), (1, KV_HEADS, SLOTS, DIM)
    sizes = {"query": (1, 1, HEADS * DIM), "key": new, "value": new, "key_cache": cache, "value_cache": cache}
    lengths = {"last": (1,), "total": ()}
    inputs = [
        ir.Value(name=name, type=ir.TensorType(float32 if name in sizes else int32), shape=ir.Shape(shape))
        for name, shape in {**sizes, **lengths}.items()
    ]
    outputs = [
        ir.Value(name=f"new_{name}", type=ir.TensorType(float32), shape=ir.Shape(sizes[name]))
        for name in ("query", "key_cache", "value_cache")
    ]
    own = operator == "Attend"
    attributes = {"scale": 0.0} if own else {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 0}
    domain = "vlkv.native" if own else "com.microsoft"
    used = inputs[:6] if own else inputs
    node = ir.Node(domain, operator, used, ir.convenience.convert_attributes(attributes), outputs=outputs)
    graph = ir.Graph(used, outputs, nodes=[node], name=operator, opset_imports={"": 24, domain: 1})
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, session_options(0, "native"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in sizes.items()}
    arrays |= {"last": np.array([SLOTS - 1], np.int32), "total": np.array(SLOTS, np.int32)}
    binding = session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    for value in used:
        binding.bind_ortvalue_input(value.name, held[value.name])
    for name in ("key_cache", "value_cache"):
        binding.bind_ortvalue_output(f"new_{name}", held[name])
    binding.bind_output("new_query", "cpu")
    # keeps the arrays alive: the bindings use their memory
    return lambda keep=arrays: session.run_with_iobinding(binding)


def against_prefill(folder: Path, lengths: list[int]) -> Iterator[Row]:
    """Compares score, allocation and eviction of all layers with the prefill of the same prompt."""
    from make_engine import engine_of

    from vlkv.bench.prompts import make_prompts
    from vlkv.bench.settings import Budget
    from vlkv.bench.timing import EngineArm

    engine = engine_of("150m", folder)
    arm = EngineArm(engine, Budget(0.1), "vl-cache")
    arm.run(make_prompts(engine.manifest, lengths[0], 1), 2)
    for length in lengths:
        repeats = 3 if length < 10_000 else 1
        asked = make_prompts(engine.manifest, length, 1)
        times = [arm.run(asked, 2) for _ in range(repeats)]
        yield {
            "figure": f"compression, {length} tokens, 150M parameters",
            "prefill ms": median(spent.prefill for spent in times) * 1e3,
            "compression ms": median(spent.compress for spent in times) * 1e3,
            "ratio": median(spent.compress / spent.prefill for spent in times),
        }


def line(row: Row) -> str:
    """Formats a figure as a line of Markdown."""
    parts = [
        f"{name} {value if isinstance(value, str) else format(value, '.3g')}"
        for name, value in row.items()
        if name != "figure"
    ]
    return f"- {row['figure']}: {', '.join(parts)}"


def kernels(binary: Path) -> Iterator[Row]:
    """Runs the C++ program and yields its results: peak rate, Score, Evict and Attend."""
    lines = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.splitlines()
    for found in map(json.loads, lines):
        sizes = [
            f"{name} {found.pop(name)}" for name in ("heads", "dim", "slots", "rows", "keep") if name in found
        ]
        figure = " ".join([found.pop("op"), *sizes, *(["merged"] if found.pop("merge", False) else [])])
        yield {"figure": figure, **found}


def main() -> None:
    """Measures and prints. `-o` names the folder for `ops.json`, `ops.md` and the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", type=Path, nargs="?", help="path of the program vlkv_bench")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--prompt-tokens", default="2000,8000,32000")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print_extra(arguments.peak_of)
        return
    lengths = [int(text) for text in arguments.prompt_tokens.split(",")]
    measured = chain(
        kernels(arguments.binary),
        [against_body(), against_group_query_attention()],
        against_prefill(arguments.output, lengths),
    )
    rows = []
    for row in measured:
        rows.append(row)
        print(line(row), flush=True)
    (arguments.output / "ops.json").write_text(json.dumps(rows, indent=2) + "\n")
    (arguments.output / "ops.md").write_text("".join(f"{line(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
