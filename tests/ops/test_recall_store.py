"""Attend over a cache and pages of evicted tokens, inside ONNX Runtime, compared with the float64 oracle."""

import gc
import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from oracles import cache_rows
from oracles import recall as oracle
from vlkv.ops.session_options import session_options

UNIT = 2.0**-24  # half the distance between float32 numbers at 1
OPERATORS = {"float32": "Attend", "bfloat16": "AttendBFloat16", "int8": "AttendInt8"}
TYPES = {"float32": ir.DataType.FLOAT, "bfloat16": ir.DataType.BFLOAT16, "int8": ir.DataType.INT8}
BFLOAT16 = 16

native = pytest.importorskip("vlkv._native")
dtypes = pytest.mark.parametrize("dtype", list(OPERATORS))


def session(dtype, layer, threads):
    """Opens a model of one node for any sizes."""
    cache, number = TYPES[dtype], ir.DataType.INT32
    types = {"query": 1, "key": 1, "value": 1, "key_cache": cache, "value_cache": cache, "last": number}
    types |= {} if dtype == "float32" else {"first": number}
    types |= {"recall": ir.DataType.INT64}
    outputs = {"result": 1, "new_key_cache": cache, "new_value_cache": cache}
    values, results = (
        [ir.Value(name=name, type=ir.TensorType(ir.DataType(of))) for name, of in both.items()]
        for both in (types, outputs)
    )
    for value in (*values, *results):
        name = value.name or ""
        rank = 4 if name.endswith("_cache") else 1 if name in ("last", "first", "recall") else 3
        value.shape = ir.Shape([f"{name}.{axis}" for axis in range(rank)])
    attributes = ir.convenience.convert_attributes({"scale": 0.0, "layer": layer})
    node = ir.Node("vlkv.native", OPERATORS[dtype], values, attributes, outputs=results)
    graph = ir.Graph(values, results, nodes=[node], name="attend", opset_imports={"": 24, "vlkv.native": 1})
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, session_options(threads, "native"), providers=["CPUExecutionProvider"])


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def narrow(rows, dtype):
    return rows.copy() if dtype == "float32" else cache_rows.narrow(rows, dtype)


def widen(stored, dtype):
    """The numbers of stored rows, not rotated, in float64."""
    if dtype == "float32":
        return stored.astype(np.float64)
    found = cache_rows.widen(stored, dtype)
    return found @ cache_rows.hadamard(found.shape[-1]) if dtype == "int8" else found


class Call:
    """Prompts with caches of 1 to `slots` tokens; those in `with_pages` have evicted `tokens`."""

    def __init__(
        self, rng, dtype, heads=(6, 2), slots=50, dim=16, tokens=(70, None, 9), page=4, count=3, layer=1
    ):
        self.dtype, self.page, self.count, self.layer = dtype, page, count, layer
        batch, (query_heads, kv_heads) = len(tokens), heads
        self.query = normal(rng, batch, query_heads, dim)
        self.added = [normal(rng, batch, kv_heads, dim) for _ in range(2)]
        self.last = rng.integers(0, slots, batch).astype(np.int32)
        self.caches = [narrow(normal(rng, batch, kv_heads, slots, dim), dtype) for _ in range(2)]
        # the store's source holds kept tokens too, other ones in each head
        self.sources, self.kept = [], []
        for evicted in tokens:
            if evicted is None:
                self.sources.append(None)
                self.kept.append(None)
                continue
            total = evicted + int(rng.integers(0, 9))
            kept = [np.sort(rng.permutation(total)[: total - evicted]) for _ in range(kv_heads)]
            self.kept.append(np.array(kept, np.int32).reshape(kv_heads, -1))
            self.sources.append([normal(rng, 1, kv_heads, total, dim) for _ in range(2)])

    def stores(self, source_dtype="float32"):
        """A store for each prompt; layers other than the call's stay empty."""
        made = []
        for source, kept in zip(self.sources, self.kept, strict=True):
            store = None
            if source is not None:
                heads, dim = self.added[0].shape[1:]
                store = native.Recall(3, heads, dim, self.page, self.count)
                store.add(self.layer, *(narrow(array, source_dtype) for array in source), kept)
            made.append(store)
        return made

    def run(self, stores, rows=None, threads=2):
        """Returns results `[B, Hq, D]` of all prompts or of some; caches stay as they were."""
        rows = list(range(len(self.query))) if rows is None else rows
        made = session(self.dtype, self.layer, threads)
        binding = made.io_binding()
        ids = [0 if stores[b] is None else stores[b].id for b in rows]
        flat = [array[rows].reshape(len(rows), 1, -1) for array in (self.query, *self.added)]
        inputs = dict(zip(("query", "key", "value"), flat, strict=True))
        inputs |= {"last": self.last[rows], "recall": np.array(ids, np.int64)}
        if self.dtype != "float32":
            inputs["first"] = self.last[rows]
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        held = [array[rows].copy() for array in self.caches]
        for name, array in zip(("key_cache", "value_cache"), held, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(array)
            if self.dtype == "bfloat16":
                value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"new_{name}", value)
        binding.bind_output("result", "cpu")
        made.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy().reshape(self.query[rows].shape)

    def expected(self):
        keys, values, prompts = [], [], []
        for b, last in enumerate(self.last):
            both = [widen(cache[b, :, : last + 1], self.dtype) for cache in self.caches]
            for rows, added in zip(both, self.added, strict=True):
                rows[:, last] = added[b]
            keys.append(both[0])
            values.append(both[1])
            source, kept = self.sources[b], self.kept[b]
            if source is None:
                prompts.append(None)
                continue
            gone = [oracle.evicted(source[0].shape[2], head) for head in kept]
            part = [np.stack([array[0, h, slots] for h, slots in enumerate(gone)]) for array in source]
            stored = [widen(narrow(array, "int8"), "int8") for array in part]
            prompts.append((part[0], *stored))
        scale = 1 / math.sqrt(self.query.shape[2])
        return oracle.attend(self.query, keys, values, prompts, self.page, self.count, scale)

    def tolerance(self, expected):
        """As in test_cache_dtypes.py; the result is turned back once more, and the cache may hold other rows."""
        _, magnitude, _, _ = expected
        dim = self.query.shape[2]
        block = cache_rows.block_of(dim)
        row = float(np.abs(self.query).sum(-1).max()) * math.sqrt(block)
        most = max(
            float(np.abs(a).max(initial=0)) for s in (self.sources, [self.added]) for p in s if p for a in p
        )
        largest = row * max(most, 6.0) / math.sqrt(dim)
        stages = math.log2(block) + 2
        error = (dim + 4 + stages * math.sqrt(block)) * UNIT * largest
        slots = self.caches[0].shape[2] + self.page * self.count
        relative = 2 * math.expm1(2 * error + 4 * UNIT * largest) + (34 + 2 * stages + 2 * slots) * UNIT
        # a rotation mixes the elements of a block
        return relative * magnitude.max(-1, keepdims=True) * math.sqrt(block) + 2.0**-126, error

    def check(self):
        """Compares the results; False if two pages are as good as each other, so that either may be read."""
        expected = self.expected()
        tolerance, error = self.tolerance(expected)
        if expected[3] <= 4 * error:
            return False
        got = self.run(self.stores())
        assert (np.abs(got - expected[0]) <= tolerance).all()
        return True


@dtypes
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"heads": (1, 1), "slots": 1, "dim": 1, "tokens": (1, 2), "page": 1, "count": 1},
        {"heads": (4, 4), "dim": 7, "tokens": (33,), "page": 5, "count": 2},
        {"heads": (14, 2), "slots": 130, "dim": 64, "tokens": (300, 16, 17), "page": 16, "count": 4},
        {"heads": (5, 1), "dim": 33, "tokens": (40, 0), "page": 3},
        {"heads": (8, 4), "slots": 2100, "dim": 72, "tokens": (None, 99), "page": 8, "count": 99},
    ],
)
def test_sizes(rng, dtype, simd, sizes):
    assert any(Call(rng, dtype, **sizes).check() for _ in range(20))


def test_a_store_takes_rows_of_bfloat16(rng):
    call = Call(rng, "float32")
    for source in call.sources:
        for array in source or ():
            array[:] = widen(narrow(array, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(call.run(call.stores()), call.run(call.stores("bfloat16")))


@dtypes
def test_rows_of_int8_are_copied(rng, dtype):
    call = Call(rng, dtype, tokens=(40,), count=99)
    float_store, int8_store = call.stores()[0], call.stores("int8")[0]
    np.testing.assert_array_equal(call.run([float_store]), call.run([int8_store]))


@dtypes
def test_without_pages_every_bit_is_as_before(rng, dtype):
    call = Call(rng, dtype, tokens=(None, 0))
    np.testing.assert_array_equal(call.run(call.stores()), call.run([None, None]))


@dtypes
def test_threads_and_neighbours_change_no_bit(rng, dtype):
    call = Call(rng, dtype, slots=2500, dim=64, tokens=(700, None, 900, 5), page=16, count=7)
    stores = call.stores()
    one = call.run(stores, threads=1)
    np.testing.assert_array_equal(one, call.run(stores, threads=3))
    for b in range(4):
        np.testing.assert_array_equal(one[b : b + 1], call.run(stores, rows=[b]))


def test_ties_go_to_the_lower_page(rng):
    call = Call(rng, "float32", heads=(2, 1), tokens=(24,), page=4, count=3)
    call.kept[0] = np.zeros((1, 0), np.int32)
    call.sources[0] = [
        array[:, :, :24].copy() for array in (normal(rng, 1, 1, 24, 16), normal(rng, 1, 1, 24, 16))
    ]
    for first in range(4, 24, 4):
        call.sources[0][0][:, :, first : first + 4] = call.sources[0][0][:, :, :4]
    expected = call.expected()
    assert expected[2][0, 0].tolist() == [0, 1, 2] and expected[3] == 0
    got = call.run(call.stores())
    assert (np.abs(got - expected[0]) <= call.tolerance(expected)[0]).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_wrong_key_is_always_read_and_reaches_its_own_kv_head_alone(rng, wrong):
    call = Call(rng, "float32", heads=(6, 2), tokens=(60, 60), page=4, count=2)
    slot = oracle.evicted(call.sources[1][0].shape[2], call.kept[1][0])[50]
    call.sources[1][0][0, 0, slot, 3] = wrong
    bad = np.isnan(call.run(call.stores()))
    assert bad[1, :3].all() and not bad[0].any() and not bad[1, 3:].any()


def test_a_wrong_value_matters_only_if_its_page_is_read(rng):
    call = Call(rng, "float32", heads=(2, 1), tokens=(60,), page=4, count=2)
    chosen = call.expected()[2][0, 0]
    unread = next(page for page in range(15) if page not in chosen)
    slots = oracle.evicted(call.sources[0][0].shape[2], call.kept[0][0])
    before = call.run(call.stores())
    call.sources[0][1][0, 0, slots[unread * 4]] = np.nan
    np.testing.assert_array_equal(before, call.run(call.stores()))
    call.sources[0][1][0, 0, slots[chosen[0] * 4]] = np.nan
    assert np.isnan(call.run(call.stores())).all()


def test_huge_keys_that_a_float_cannot_bound(rng):
    call = Call(rng, "float32", heads=(1, 1), tokens=(12,), page=4, count=1)
    slots = oracle.evicted(call.sources[0][0].shape[2], call.kept[0][0])
    call.sources[0][0][0, 0, slots[5]] = 3.4e38
    assert np.isnan(call.run(call.stores())).all()  # its page is read, as the full cache would be


def test_bytes_are_counted(rng):
    call = Call(rng, "float32", heads=(6, 2), dim=16, tokens=(70, None, 9), page=4, count=3)
    stores = call.stores()
    row, bounds = 16 + 4, 2 * 16 * 2
    assert stores[0].bytes == 2 * (70 * 2 * row + 18 * bounds)
    assert stores[2].bytes == 2 * (9 * 2 * row + 3 * bounds)
    call.run(stores)
    assert stores[2].bytes_read == 2 * 9 * 2 * row  # no choice, no bounds
    read = stores[0].bytes_read - 2 * 18 * bounds
    assert read in [2 * 2 * row * n for n in range(8, 13)]  # the last page has 2 tokens
    call.run(stores)
    assert stores[2].bytes_read == 4 * 9 * 2 * row


def test_a_store_that_is_gone_is_refused(rng):
    call = Call(rng, "float32", tokens=(9, 9))
    stores = call.stores()
    number = stores[0].id
    stores[0] = None
    gc.collect()

    class Gone:
        id = number

    with pytest.raises(
        Exception, match=rf"prompt 0 names a store of evicted tokens, {number}, that does not"
    ):
        call.run([Gone, stores[1]])


def test_a_store_of_another_model_is_refused(rng):
    call = Call(rng, "float32", tokens=(9,))
    other = native.Recall(3, 4, 16, 4, 1)
    with pytest.raises(Exception, match="have 4 KV heads of 16, not 2 of 16"):
        call.run([other])
    with pytest.raises(Exception, match=r"layer is 1, not in \[0, 0\]"):
        call.run([native.Recall(1, 2, 16, 4, 1)])


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0, 2, 16, 4, 1), r"layers is 0, not in \[1, 65536\]"),
        ((1, 0, 16, 4, 1), r"kv_heads is 0"),
        ((1, 2, 0, 4, 1), r"head_dim is 0"),
        ((1, 2, 16, 0, 1), r"page is 0, not in \[1, 1024\]"),
        ((1, 2, 16, 4, 0), r"pages is 0"),
    ],
)
def test_wrong_sizes(sizes, text):
    with pytest.raises(ValueError, match=text):
        native.Recall(*sizes)


def test_wrong_rows(rng):
    store = native.Recall(1, 2, 16, 4, 1)
    rows, kept = normal(rng, 1, 2, 9, 16), np.array([[0, 3], [1, 2]], np.int32)
    with pytest.raises(ValueError, match=r"key has shape \(1, 1, 9, 16\), not \(1, 2, 9, 16\)"):
        store.add(0, rows[:, :1], rows, kept)
    with pytest.raises(ValueError, match="value has shape"):
        store.add(0, rows, rows[:, :, :8], kept)
    with pytest.raises(ValueError, match="kept has 9, not ascending slots from 0 to 8"):
        store.add(0, rows, rows, kept * 3)
    with pytest.raises(ValueError, match="kept has 1, not ascending"):
        store.add(0, rows, rows, np.array([[0, 3], [1, 1]], np.int32))
    with pytest.raises(ValueError, match="kept is not int32"):
        store.add(0, rows, rows, kept.astype(np.int64))
    with pytest.raises(ValueError, match=r"layer is 1, not in \[0, 0\]"):
        store.add(1, rows, rows, kept)
    store.add(0, rows, rows, kept)
    with pytest.raises(ValueError, match="layer 0 is filled already"):
        store.add(0, rows, rows, kept)
