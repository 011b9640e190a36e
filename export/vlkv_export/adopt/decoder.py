"""Converts a foreign decoder graph: inputs, outputs and attention follow `docs/structure.md`, the rest is unchanged.

The nodes move to a new graph in their order. vlkv's attention replaces each layer's; the runtime looks up token
embeddings; logits are those of each prompt's last token. Unused nodes are removed.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.errors import CheckpointError
from vlkv_export.adopt.branches import take_branch
from vlkv_export.adopt.embedding import Lookup, find_apart, find_lookup
from vlkv_export.adopt.facts import Source
from vlkv_export.adopt.forms import EXPECTED, FORMS, Attention
from vlkv_export.adopt.forms.spec import Caches, refuse
from vlkv_export.adopt.opset import raise_opset
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.checkpoint.layout import HEAD as HEAD_NAME
from vlkv_export.graph.attention import Heads, Rows, attend_over_cache, call_rows
from vlkv_export.graph.builder import Builder
from vlkv_export.graph.decoder import last_row
from vlkv_export.passes.edit import MICROSOFT
from vlkv_export.weights.convert import NAMES

EMBEDS = "inputs_embeds"
PLUGINS = {
    "AttentionPlugin": "TensorRT-Edge-LLM's plugin, whose cache holds keys and values together and whose result no "
    "other runtime can be asked for"
}
"""Operators of other runtimes alone, and what they are."""
DOMAINS = ("", "ai.onnx", MICROSOFT)
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
ELEMENTWISE = {"Cast", "Mul", "Div", "Add", "Tanh", "Identity"}
"""Operators allowed between the product with the vocabulary and the logits: they act on each logit separately."""
PRODUCTS = {"MatMul", "MatMulNBits", "Gemm"}


@dataclass(frozen=True)
class Adopted:
    """A decoder in vlkv's form.

    Fields:
        model: the graph.
        lookup: the original's token embedding.
        dtype: the dtype of the caches.
        counts: the number of rewritten nodes of each kind.
        window: the sliding window in tokens, if the graph has one.
        codes: whether the graph has quantised weights.
    """

    model: ir.Model
    lookup: Lookup
    dtype: Dtype
    counts: dict[str, int]
    window: int | None
    codes: bool


def adopt_decoder(foreign: ir.Model, source: Source, apart: ir.Model | None = None) -> Adopted:
    """Converts a foreign decoder to vlkv's form; its nodes move to the new graph.

    `apart` is the graph of the token embedding, for decoders whose input is `inputs_embeds`.

    Raises:
        CheckpointError: a node is not recognised; the message names it and what was expected.
    """
    graph = foreign.graph
    for node in graph:
        if node.op_type in PLUGINS:
            raise refuse(node, f"{PLUGINS[node.op_type]}; expected {EXPECTED}")
        if node.domain not in DOMAINS and node.op_identifier() not in foreign.functions:
            raise refuse(node, f"is of the domain {node.domain!r}; expected operators of ONNX or {MICROSOFT}")
    branches = take_branch(foreign)
    raise_opset(foreign)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(foreign)
    given = next((value for value in graph.inputs if value.name == EMBEDS), None)
    if given is not None and apart is None:
        raise CheckpointError(
            f"{source.graph} reads {EMBEDS!r}, and its token embedding is not beside it; "
            "expected embed_tokens.onnx, or an embedding in genai_config.json"
        )
    lookup = find_lookup(graph) if given is None or apart is None else find_apart(apart)
    attentions = [_attention(graph, source, layer) for layer in range(source.layers)]
    dtype = _dtype(attentions[0].caches.past[0])
    b = Builder("decoder", {}, dtype)
    made = _move(b, graph, source, attentions, given or lookup.output)
    common.RemoveUnusedNodesPass()(made)
    _check_inputs(made, graph)
    windows = {attention.window for attention in attentions}
    if len(windows) > 1:
        raise CheckpointError(
            f"{source.graph}: layers see {sorted(map(str, windows))} tokens; expected one number for all"
        )
    codes = any(node.op_type == "MatMulNBits" for node in made.graph)
    counts = {"attention": len(attentions), "embedding": 1, "last_logits": 1, "branch": branches}
    return Adopted(made, lookup, dtype, counts, windows.pop(), codes)


def _attention(graph: ir.Graph, source: Source, layer: int) -> Attention:
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}

    def named(
        patterns: tuple[str, str], values: dict[str | None, ir.Value], kind: str
    ) -> tuple[ir.Value, ir.Value]:
        names = [pattern % layer for pattern in patterns]
        for name in names:
            if name not in values:
                raise CheckpointError(
                    f"{source.graph}: no {kind} {name!r}; expected one for each of {source.layers} layers"
                )
        return values[names[0]], values[names[1]]

    caches = Caches(
        layer,
        named(source.past, inputs, "input"),
        named(source.present, outputs, "output"),
        source.query_heads,
        source.kv_heads,
        source.head_dim,
    )
    for form in FORMS:
        found = form(caches)
        if found is not None:
            return found
    node = caches.present[0].producer()
    if node is None:
        raise CheckpointError(
            f"{source.graph}: {caches.present[0].name!r} is not made by a node; expected {EXPECTED}"
        )
    raise refuse(node, f"makes the cache {caches.present[0].name!r}; expected {EXPECTED}")


def _dtype(cache: ir.Value) -> Dtype:
    if cache.dtype is None or cache.dtype not in NAMES:
        raise CheckpointError(
            f"caches are of {cache.dtype}; expected {', '.join(NAMES.values())}: export with a cache of floats"
        )
    return NAMES[cache.dtype]


def _move(
    b: Builder, graph: ir.Graph, source: Source, attentions: list[Attention], embedded: ir.Value
) -> ir.Model:
    """Moves all nodes to the builder's graph, and replaces attention and embedding."""
    b.graph.opset_imports.update({name: version for name, version in graph.opset_imports.items() if name})
    embeds = b.input("inputs_embeds", FLOAT, ["B", "S", source.hidden])
    position_ids = b.input("position_ids", INT64, ["B", "S"])
    row_index = b.input("row_index", INT64, ["B", "W"])
    length = b.input("length", INT64, [source.layers, "B"])
    shapes: list[list[int | str]] = [
        ["B", source.kv_heads, f"C_{n}", source.head_dim] for n in range(source.layers)
    ]
    caches = [
        (b.input(f"key_cache.{n}", b.dtype, shape), b.input(f"value_cache.{n}", b.dtype, shape))
        for n, shape in enumerate(shapes)
    ]
    positions = b.op.Max(position_ids, 0)
    rows = call_rows(b, position_ids, row_index)
    last = last_row(b, position_ids)
    logits = next((value for value in graph.outputs if value.name == source.logits), None)
    if logits is None:
        raise CheckpointError(f"{source.graph}: no output {source.logits!r}")
    product = _vocabulary(logits)
    _name_head(product, graph)
    take_weights(b, graph)
    given = {value.name: value for value in graph.inputs}
    swaps = {embedded: embeds if b.dtype == FLOAT else b.op.Cast(embeds, to=b.dtype)}
    if "position_ids" in given:
        swaps[given["position_ids"]] = positions
    for before, after in swaps.items():
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    places = {_maker(attention.result): attention for attention in attentions}
    written, scores, sparsities = [], [], []
    graph.outputs.clear()
    for node in list(graph):
        if node is product:
            _of_last_rows(b, node, last)
        graph.remove(node)
        b.graph.append(node)
        attention = places.get(node)
        if attention is None:
            continue
        n = attention.caches.layer
        with b.scope(f"layer.{n}"):
            valid = b.op.Gather(length, n, axis=0)
            result, keys, values, score, sparsity = _attend(b, attention, positions, rows, caches[n], valid)
            sparsities.append(b.op.Unsqueeze(sparsity, [0]))
        ir.convenience.replace_all_uses_with(attention.result, result)
        written.append((keys, values))
        scores.append(score)
    if len(written) != source.layers:
        raise CheckpointError(f"{source.graph}: nodes are not in order")
    logits.name = f"{source.logits}.rows"
    b.output(b.op.Cast(b.op.Squeeze(logits, [1]), to=FLOAT), "logits", FLOAT, ["B", source.vocab])
    for n, pair in enumerate(written):
        for kind, value in zip(("key", "value"), pair, strict=True):
            b.output(value, f"new_{kind}_cache.{n}", b.dtype, shapes[n])
    for n, score in enumerate(scores):
        b.output(score, f"score.{n}", FLOAT, ["B", source.kv_heads, f"C_{n}"])
    b.output(b.op.Concat(*sparsities, axis=0), "sparsity", FLOAT, [source.layers, "B"])
    return b.model()


def _attend(
    b: Builder,
    attention: Attention,
    positions: ir.Value,
    rows: Rows,
    caches: tuple[ir.Value, ir.Value],
    valid: ir.Value,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value, ir.Value]:
    sizes = attention.caches
    hq, hkv, dim = sizes.query_heads, sizes.kv_heads, sizes.head_dim
    query, key, value = attention.query, attention.key, attention.value
    if key is None or value is None:
        parts = [hq * dim, hkv * dim, hkv * dim]
        query, key, value = b.op.Split(query, parts, axis=-1, _outputs=3)
    if attention.query_split:
        query = _merge(b, query, hq * dim)
    if attention.key_split:
        key, value = _merge(b, key, hkv * dim), _merge(b, value, hkv * dim)
    if (rotary := attention.rotary) is not None:
        facts = {"interleaved": int(rotary.interleaved)}
        if rotary.dim != dim:
            facts["rotary_embedding_dim"] = rotary.dim
        query, key = (
            b.op.RotaryEmbedding(x, rotary.cos, rotary.sin, positions, num_heads=heads, **facts)
            for x, heads in ((query, hq), (key, hkv))
        )
    heads = Heads(hq, hkv, dim, attention.scale)
    result, *rest = attend_over_cache(b, query, key, value, rows, caches, valid, heads)
    if attention.result_split:
        result = b.op.Transpose(b.op.Reshape(result, [0, 0, hq, dim]), perm=[0, 2, 1, 3])
    keys, values, score, sparsity = rest
    return result, keys, values, score, sparsity


def _merge(b: Builder, x: ir.Value, size: int) -> ir.Value:
    """Reshape `[B,heads,S,D]` to `[B,S,heads*D]`."""
    return b.op.Reshape(b.op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, size])


def _vocabulary(logits: ir.Value) -> ir.Node:
    """Finds the product with the vocabulary's matrix that produces the logits."""
    value: ir.Value | None = logits
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in PRODUCTS:
            return node
        if node.op_type not in ELEMENTWISE:
            raise refuse(
                node, f"on the way to {logits.name!r}; expected {', '.join(sorted(PRODUCTS | ELEMENTWISE))}"
            )
        value = next((one for one in node.inputs if one is not None and one.const_value is None), None)
    raise CheckpointError(
        f"output {logits.name!r} is not made by a product; expected {', '.join(sorted(PRODUCTS))}"
    )


def _of_last_rows(b: Builder, product: ir.Node, last: ir.Value) -> None:
    """Makes the product use only each prompt's last valid row, `[B,1,hidden]`."""
    x = product.inputs[0]
    if x is None or product.op_type == "Gemm":
        raise refuse(product, "makes logits of a matrix; expected hidden states [B,S,hidden]")
    with b.scope("logits"):
        product.replace_input_with(0, b.op.Unsqueeze(b.op.GatherND(x, last, batch_dims=1), [1]))


def _name_head(product: ir.Node, graph: ir.Graph) -> None:
    """Gives the vocabulary's matrix the canonical name that weight formats use."""
    weight = product.inputs[1]
    if product.op_type == "MatMul" and weight is not None and weight.is_initializer():
        graph.initializers.pop(str(weight.name))
        weight.name = HEAD_NAME
        graph.register_initializer(weight)


def take_weights(b: Builder, graph: ir.Graph) -> None:
    """Moves the weights to the builder's graph."""
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        b.graph.register_initializer(value)


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise CheckpointError(f"no node makes {value.name!r}")
    return node


def _check_inputs(model: ir.Model, foreign: ir.Graph) -> None:
    """Checks that no node reads an input that was removed, such as an attention mask."""
    gone = {value: value.name for value in foreign.inputs}
    for node in model.graph:
        for value in node.inputs:
            if value in gone:
                raise refuse(node, f"reads the input {gone[value]!r}; expected none but attention to")
