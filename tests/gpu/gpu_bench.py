"""Compares the times of Score, Evict, Pick and Draw on this machine's device with their floors.

python tests/gpu/gpu_bench.py [-o FILE]

The floor is the larger of two times: the bytes that must move over the rate of a large device-to-device copy, and the
operations over the rate of a large matrix product. Both rates are measured first. Bytes count each input and each
output once. Operations count two products Q K^T of the attended pairs, because the matrix is not kept. Times are of a
replayed CUDA graph that uses several sets of inputs, so that they do not lie in the L2 cache.
"""

import argparse
import json
from pathlib import Path

import torch
from gpu_library import BUILD, Library

MODELS = {"7B (32 heads)": (32, 32), "7B (8 KV heads)": (32, 8), "34B (8 KV heads)": (56, 8)}
LENGTHS = [2048, 8192, 32768, 131072]
VOCABULARIES = [32_000, 151_936]
ROWS, DIM, KEEP = 64, 128, 0.1
SET_BYTES = (
    192 << 20
)  # of inputs that are gone through before the first comes again, several times an L2 cache


def milliseconds(work, repeats=1):
    """Returns the median time of one `work()` among replays of a graph of `repeats` of them."""
    work(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeats):
            work(i)
    times = []
    for _ in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / repeats)
    return sorted(times[5:])[10]


def copy_rate():
    """Returns the bytes that a large copy reads and writes per millisecond."""
    a = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / milliseconds(lambda _: b.copy_(a))


def matrix_rate(dtype):
    """Returns the floating point operations per millisecond of a large product of random matrices."""
    n = 8192 if dtype != torch.float32 else 4096
    a, b = torch.randn(2, n, n, device="cuda").to(dtype)
    out = torch.empty_like(a)
    return 2 * n**3 / milliseconds(lambda _: torch.mm(a, b, out=out))


def score(library, heads, slots, dtype, rates):
    """Returns time, floor and what sets it, for the post-vision rows of one layer at the end of the cache."""
    query_heads, kv_heads = heads
    size = torch.finfo(dtype).bits // 8
    sets = max(1, min(32, SET_BYTES // (kv_heads * slots * DIM * size)))
    query = torch.randn(sets, 1, query_heads, ROWS, DIM, device="cuda").to(dtype)
    key = torch.randn(sets, 1, kv_heads, slots, DIM, device="cuda").to(dtype)
    position = torch.arange(slots - ROWS, slots, device="cuda")[None]
    out = torch.empty(1, kv_heads, slots, device="cuda")
    pairs, below = torch.empty(2, 1, dtype=torch.int64, device="cuda")
    sparsity = torch.empty(1, device="cuda")
    time = milliseconds(
        lambda i: library.score(query[i], key[i], position, out, pairs, below, sparsity), repeats=sets
    )
    moved = (query[0].numel() + key[0].numel()) * size + out.numel() * 4
    operations = 2 * 2 * query_heads * ROWS * slots * DIM
    floors = {"bytes": moved / rates["copy"], "operations": operations / rates[str(dtype)]}
    return time, max(floors.values()), max(floors, key=floors.get)


def evict(library, heads, slots, dtype, merge, rates):
    """Returns time, floor and what sets it, for a tenth of one layer's cache with a selection per head."""
    kv_heads, size = heads[1], torch.finfo(dtype).bits // 8
    kept = round(slots * KEEP)
    sets = max(1, min(32, SET_BYTES // (2 * kv_heads * (slots if merge else kept) * DIM * size)))
    key, value = torch.randn(2, sets, 1, kv_heads, slots, DIM, device="cuda").to(dtype)
    ratings = torch.rand(sets, 1, kv_heads, slots, device="cuda")
    counts = tuple(torch.tensor([n], device="cuda") for n in (slots, kept, 0, kept // 10))
    new_key, new_value = torch.empty(2, 1, kv_heads, kept, DIM, device="cuda", dtype=dtype)
    position = torch.empty(1, kv_heads, kept, dtype=torch.int32, device="cuda")
    time = milliseconds(
        lambda i: library.evict(
            key[i], value[i], ratings[i], counts, new_key, new_value, position, merge=merge
        ),
        repeats=sets,
    )
    read = slots if merge else kept
    moved = 2 * kv_heads * (read + kept) * DIM * size + ratings[0].numel() * 4 + position.numel() * 4
    return time, moved / rates["copy"], "bytes"


def choose(library, kernel, vocab, batch, rates):
    """Returns time, floor and what sets it, for one token of each prompt's logits; a draw of top-k 50 and top-p 0.9."""
    sets = max(1, min(32, SET_BYTES // (4 * batch * vocab)))
    logits = 4 * torch.randn(sets, batch, vocab, device="cuda")
    token = torch.empty(batch, dtype=torch.int32, device="cuda")
    best = torch.empty(batch, device="cuda")
    settings = torch.tensor([[0.7, 50, 0.9, 0.5]], dtype=torch.float64, device="cuda").repeat(batch, 1)
    given = (settings,) if kernel == "draw" else ()
    time = milliseconds(lambda i: getattr(library, kernel)(logits[i], *given, token, best), repeats=sets)
    return time, logits[0].numel() * 4 / rates["copy"], "bytes"


def main():
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench-gpu skipped: no CUDA device")
    library = Library(BUILD / "cpp" / "libvlkv.so", poison=False)
    torch.backends.cuda.matmul.allow_tf32 = False
    rates = {"copy": copy_rate()}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rates[str(dtype)] = matrix_rate(dtype)
    device = torch.cuda.get_device_name()
    print(f"{device}: copy {rates['copy'] / 1e9:.2f} TB/s, " + ", ".join(
        f"{name.removeprefix('torch.')} {rate / 1e9:.0f} TFLOP/s" for name, rate in rates.items() if name != "copy"
    ))  # fmt: skip
    print(f"{'kernel':14} {'model':18} {'C':>7} {'type':9} {'us':>9} {'floor us':>9} {'ratio':>6} set by")
    results = []
    for model, heads in MODELS.items():
        for slots in LENGTHS:
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                for kernel in ("score", "evict", "evict + merge"):
                    if kernel == "score":
                        time, floor, by = score(library, heads, slots, dtype, rates)
                    else:
                        time, floor, by = evict(library, heads, slots, dtype, kernel != "evict", rates)
                    name = str(dtype).removeprefix("torch.")
                    print(f"{kernel:14} {model:18} {slots:7} {name:9} {time * 1e3:9.1f} {floor * 1e3:9.1f} "
                          f"{time / floor:6.2f} {by}", flush=True)  # fmt: skip
                    results.append({"kernel": kernel, "model": model, "slots": slots, "dtype": name,
                                    "milliseconds": time, "floor": floor, "set_by": by})  # fmt: skip
    for kernel in ("pick", "draw"):
        for vocab in VOCABULARIES:
            for batch in (1, 16):
                time, floor, by = choose(library, kernel, vocab, batch, rates)
                print(f"{kernel:14} {f'{batch} prompts':18} {vocab:7} {'float32':9} {time * 1e3:9.1f} "
                      f"{floor * 1e3:9.1f} {time / floor:6.2f} {by}", flush=True)  # fmt: skip
                results.append({"kernel": kernel, "model": f"{batch} prompts", "slots": vocab, "dtype": "float32",
                                "milliseconds": time, "floor": floor, "set_by": by})  # fmt: skip
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(
            json.dumps({"device": device, "rates_per_ms": rates, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
