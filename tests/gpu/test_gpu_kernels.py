"""Compares Score, Evict and Attend on the device with float64, on fresh random inputs and outputs filled with NaN."""

import os
import shutil
import subprocess

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch")
gpu_library = pytest.importorskip("gpu_library")
gpu_oracles = pytest.importorskip("gpu_oracles")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# B, Hq, Hkv, W, C, D
SHAPES = [
    (1, 1, 1, 0, 5, 64),
    (2, 2, 1, 3, 0, 64),
    (1, 3, 1, 1, 31, 33),
    (2, 8, 8, 33, 1000, 64),
    (1, 7, 1, 17, 999, 80),
    (3, 6, 2, 5, 65, 40),
    (1, 2, 2, 9, 130, 576),
    (1, 32, 8, 64, 4096, 128),
    (1, 56, 8, 64, 2048, 128),
    (1, 4, 4, 1024, 2048, 128),
    (1, 2, 1, 64, 131072, 128),
    *[(2, 2 * group, 2, 19, 333, 128) for group in range(1, 9)],
]
NAN = float("nan")


def score_case(library, shape, dtype, key_dtype=None):
    batch, query_heads, kv_heads, rows, slots, dim = shape
    query = torch.randn(batch, query_heads, rows, dim, device=library.device).to(dtype)
    key = torch.randn(batch, kv_heads, slots, dim, device=library.device).to(key_dtype or dtype)
    # Prompts of different lengths; some rows are padding.
    position = torch.full((batch, rows), -1, device=library.device)
    for b in range(batch if slots else 0):
        length = int(torch.randint(1, slots + 1, ()))
        position[b] = torch.randint(-1, length, (rows,))
    return query, key, position


def run_score(library, query, key, position):
    batch, kv_heads, slots = key.shape[:3]
    score = torch.full((batch, kv_heads, slots), NAN, device=library.device)
    pairs, below = torch.full((2, batch), -7, dtype=torch.int64, device=library.device)
    sparsity = torch.full((batch,), NAN, device=library.device)
    library.score(query, key, position, score, pairs, below, sparsity)
    library.wait()
    return score, pairs, below, sparsity


def check_score(library, query, key, position):
    score, pairs, below, sparsity = run_score(library, query, key, position)
    total, right, low, high, tolerance = gpu_oracles.score(
        query, key, position, query.shape[-1] ** -0.5, 0.01
    )
    assert not score.isnan().any()
    torch.testing.assert_close(score.double(), total, rtol=tolerance, atol=1e-30)
    assert torch.equal(pairs, right)
    assert (low <= below).all()
    assert (below <= high).all()
    torch.testing.assert_close(
        sparsity.double(), torch.where(pairs > 0, below / pairs.clamp(min=1), 0).double()
    )
    again = run_score(library, query, key, position)
    assert all(torch.equal(a, b) for a, b in zip((score, pairs, below, sparsity), again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_score(library, seed, shape, dtype):
    check_score(library, *score_case(library, shape, dtype))


@pytest.mark.parametrize("types", [(torch.float32, torch.float16), (torch.bfloat16, torch.float16)], ids=str)
def test_score_of_two_types(library, seed, types):
    check_score(library, *score_case(library, (2, 4, 2, 21, 300, 128), *types))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_score_of_views(library, seed, dtype):
    query, key, position = score_case(library, (2, 4, 2, 21, 300, 128), dtype)
    for start in (0, 1):  # with and without copies of 16 bytes
        wide = torch.full((2, 2, 400, 133), NAN, device=library.device, dtype=dtype)
        view = wide[:, :, 50:350, start : start + 128]
        view.copy_(key)
        check_score(library, query, view, position)


def test_score_captured_into_a_graph(library, seed):
    if library.device != "cuda":
        pytest.skip("graphs are CUDA's")
    query, key, position = score_case(library, (1, 8, 2, 32, 2048, 128), torch.float16)
    right = run_score(library, query, key, position)
    outputs = [torch.zeros_like(t) for t in right]
    library.score(query, key, position, *outputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.score(query, key, position, *outputs)
    for t in outputs:
        t.zero_()
    graph.replay()
    library.wait()
    assert all(torch.equal(a, b) for a, b in zip(right, outputs, strict=True))


def evict_case(library, batch, heads, slots, dim, dtype, scores):
    key, value = torch.randn(2, batch, heads, slots, dim, device=library.device).to(dtype)
    score = torch.rand(batch, heads, slots, device=library.device)
    if scores == "ties":
        score = (score * 4).round()
    if scores == "nan":
        score[torch.rand_like(score) < 0.7] = NAN
    length = torch.randint(slots // 2, slots + 1, (batch,))
    keep = (length * torch.rand(batch) * 0.5).long()
    sinks = torch.minimum(torch.randint(0, 5, (batch,)), keep)
    recent = ((keep - sinks) * 0.3).long()
    return key, value, score, tuple(c.to(library.device) for c in (length, keep, sinks, recent))


def check_evict(library, key, value, score, counts, capacity, per_head, merge):
    batch, heads, _, dim = key.shape

    def run():
        out = [
            torch.full((batch, heads, capacity, dim), NAN, device=library.device, dtype=key.dtype)
            for _ in range(2)
        ]
        position = torch.full((batch, heads, capacity), -7, dtype=torch.int32, device=library.device)
        library.evict(key, value, score, counts, *out, position, per_head=per_head, merge=merge)
        library.wait()
        return *out, position

    got = run()
    *right, position, tokens = gpu_oracles.evict(key, value, score, counts, capacity, per_head, merge)
    assert torch.equal(got[2], position)
    for new, exact in zip(got[:2], right, strict=True):
        if merge:
            # Float32 sums of the slot's tokens, one division, one rounding to the cache's type (half an ulp).
            half = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}[key.dtype]
            most = float(max(key.abs().max(), value.abs().max())) if key.numel() else 0.0
            bound = half * exact.abs() + 2**-24 * (tokens[..., None] + 1) * most + 2**-25
            assert ((new.double() - exact).abs() <= bound).all()
        else:
            assert torch.equal(new.double(), exact)
    assert all(torch.equal(a, b) for a, b in zip(got, run(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scores", ["numbers", "ties", "nan"])
@pytest.mark.parametrize("merge", [False, True], ids=["evict", "merge"])
@pytest.mark.parametrize("per_head", [False, True], ids=["shared", "per_head"])
@pytest.mark.parametrize(
    "size", [(2, 4, 1000, 128), (3, 2, 77, 33), (1, 3, 5, 2), (1, 8, 32768, 128)], ids=str
)
def test_evict(library, seed, size, per_head, merge, scores, dtype):
    key, value, score, counts = evict_case(library, *size, dtype, scores)
    capacity = int(torch.minimum(counts[0], counts[1]).max()) + 3
    check_evict(library, key, value, score, counts, capacity, per_head, merge)


@pytest.mark.parametrize("merge", [False, True], ids=["evict", "merge"])
@pytest.mark.parametrize("scores", ["numbers", "ties", "nan"])
@pytest.mark.parametrize("per_head", [False, True], ids=["shared", "per_head"])
@pytest.mark.parametrize("slots", [65536, 131072])
def test_evict_by_several_blocks(library, seed, slots, per_head, scores, merge):
    key, value, score, _ = evict_case(library, 1, 2, slots, 128, torch.bfloat16, scores)
    length, keep = slots - 3, slots // 10
    counts = tuple(torch.tensor([n], device=library.device) for n in (length, keep, 4, keep // 10))
    check_evict(library, key, value, score, counts, keep, per_head, merge)


def test_evict_by_several_blocks_captured_into_a_graph(library, seed):
    if library.device != "cuda":
        pytest.skip("graphs are CUDA's")
    key, value, score, _ = evict_case(library, 1, 2, 65536, 16, torch.float16, "numbers")
    counts = tuple(torch.tensor([n], device=library.device) for n in (65536, 900, 4, 90))
    out = [torch.zeros(1, 2, 900, 16, device=library.device, dtype=key.dtype) for _ in range(2)]
    position = torch.zeros(1, 2, 900, dtype=torch.int32, device=library.device)
    library.evict(key, value, score, counts, *out, position)
    library.wait()
    right = [t.clone() for t in (*out, position)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.evict(key, value, score, counts, *out, position)
    for _ in range(2):
        for t in (*out, position):
            t.zero_()
        graph.replay()
        library.wait()
        assert all(torch.equal(a, b) for a, b in zip(right, (*out, position), strict=True))


def test_evict_of_nothing(library, seed):
    key, value, score, _ = evict_case(library, 2, 2, 10, 64, torch.float16, "numbers")
    for numbers in [(0, 5, 1, 1), (10, 0, 0, 0), (10, 20, 3, 3)]:
        counts = tuple(torch.full((2,), n, device=library.device) for n in numbers)
        check_evict(library, key, value, score, counts, 12, True, True)
    counts = tuple(torch.full((2,), n, device=library.device) for n in (0, 3, 1, 1))
    check_evict(library, key[:, :, :0], value[:, :, :0], score[:, :, :0], counts, 3, True, False)


# B, Hq, Hkv, S, C, D
ATTENDED = [
    (1, 32, 32, 1, 4096, 128),
    (1, 32, 8, 1, 32768, 128),
    (16, 32, 8, 1, 2000, 128),
    (64, 8, 8, 1, 300, 64),
    (2, 56, 8, 5, 3000, 128),
    (2, 8, 2, 16, 999, 80),
    (1, 8, 8, 512, 1500, 96),
    (2, 14, 2, 77, 400, 64),
    (1, 4, 1, 130, 700, 256),
    (3, 3, 1, 1, 33, 256),
    (1, 2, 2, 9, 50, 24),
]


def attend_case(library, shape, dtype):
    batch, query_heads, kv_heads, rows, slots, dim = shape
    query = torch.randn(batch, query_heads, rows, dim, device=library.device).to(dtype)
    key, value = torch.randn(2, batch, kv_heads, rows, dim, device=library.device).to(dtype)
    caches = torch.randn(2, batch, kv_heads, slots, dim, device=library.device).to(dtype)
    count = torch.randint(min(1, rows), rows + 1, (batch,))
    length = ((slots - count + 1) * torch.rand(batch)).long()
    length[0], count[0] = slots - rows, rows
    return query, key, value, caches, length.to(library.device), count.to(library.device)


def only_on_cuda(library):
    if library.device != "cuda":
        pytest.skip("Attend in 16 bits is for CUDA")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", ATTENDED, ids=lambda s: "x".join(map(str, s)))
def test_attend(library, seed, shape, dtype):
    only_on_cuda(library)
    query, key, value, caches, length, count = attend_case(library, shape, dtype)
    wanted = caches.clone()
    for b in range(shape[0]):
        first, rows = int(length[b]), int(count[b])
        # slots past the last one do not matter
        caches[:, b, :, first:] = NAN
        wanted[:, b, :, first:] = NAN
        wanted[0, b, :, first : first + rows], wanted[1, b, :, first : first + rows] = (
            key[b, :, :rows],
            value[b, :, :rows],
        )

    def run():
        result = torch.full_like(query, NAN)
        library.attend(query, key, value, *caches, length, count, result)
        library.wait()
        return result

    result = run()
    bits = [t.view(torch.int16) for t in (caches, wanted)]
    assert torch.equal(*bits)
    right, tolerance = gpu_oracles.attend(query, *wanted, length, count, shape[-1] ** -0.5, dtype)
    assert ((result.double() - right).abs() <= tolerance).all()
    assert torch.equal(result, run())


def test_attend_captured_into_a_graph(library, seed):
    only_on_cuda(library)
    query, key, value, caches, length, count = attend_case(library, ATTENDED[1], torch.float16)
    right, result = torch.empty_like(query), torch.zeros_like(query)
    library.attend(query, key, value, *caches, length, count, right)
    library.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        library.attend(query, key, value, *caches, length, count, result)
    graph.replay()
    library.wait()
    assert torch.equal(right, result)


def test_refusals_name_the_value_and_the_limit(library, seed):
    query, key, position = score_case(library, (1, 4, 2, 3, 10, 64), torch.float16)
    with pytest.raises(ValueError, match=r"^\[score\] query_heads 3 is not a multiple of kv_heads 2$"):
        run_score(library, query[:, :3], key, position)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_under_compute_sanitizer(library, tool):
    if library.device != "cuda":
        pytest.skip("compute-sanitizer is for CUDA")
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    program = gpu_library.BUILD / "cpp" / "tests" / "cuda" / "vlkv_cuda_check"
    if not os.access(sanitizer, os.X_OK):
        pytest.skip("no compute-sanitizer")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", str(program), "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not support this device")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
