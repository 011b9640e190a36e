"""The `vision` graph: pictures `[N,3,H,W]` to image features `[N,P,hidden]` through a CLIP tower and the projector."""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.checkpoint import Checkpoint, VisionConfig
from vlkv_export.graph.activation import activate
from vlkv_export.graph.builder import Builder


def build_vision(checkpoint: Checkpoint, dtype: str) -> ir.Model:
    """The graph of the tower up to its last feature layer, the selection of features, and the projector."""
    config = checkpoint.vision
    b = Builder("vision", checkpoint.tensors, dtype)
    size = [config.image_size, config.image_size]
    pixels = b.input("pixel_values", ir.DataType.FLOAT, ["N", config.channels, *size])
    x = _embed(b, pixels, config)
    states = {0: x}
    for index in range(max(config.feature_layers)):
        x = _layer(b, x, config, index)
        states[index + 1] = x
    chosen = [states[index] for index in config.feature_layers]
    features = chosen[0] if len(chosen) == 1 else b.op.Concat(*chosen, axis=-1)
    if config.select == "default":
        features = b.op.Slice(features, [1], [2**31], [1])
    with b.scope("projector"):
        features = b.linear(features, "projector.linear_1")
        features = activate(b, features, checkpoint.projector.activation)
        features = b.linear(features, "projector.linear_2")
    features = b.op.Cast(features, to=ir.DataType.FLOAT)
    shape = ["N", checkpoint.image.tokens_per_image, checkpoint.text.hidden]
    b.output(features, "image_features", ir.DataType.FLOAT, shape)
    return b.model()


def _norm(b: Builder, x: ir.Value, name: str, eps: float) -> ir.Value:
    return b.op.LayerNormalization(x, b.weight(f"{name}.weight"), b.weight(f"{name}.bias"), epsilon=eps)


def _embed(b: Builder, pixels: ir.Value, config: VisionConfig) -> ir.Value:
    with b.scope("embeddings"):
        patch = config.patch_size
        kernel = b.weight("vision.embeddings.patch_embedding.weight")
        grid = b.op.Conv(b.op.Cast(pixels, to=b.dtype), kernel, strides=[patch, patch])
        patches = b.op.Transpose(b.op.Reshape(grid, [0, config.hidden, -1]), perm=[0, 2, 1])
        pictures = b.op.Shape(pixels, start=0, end=1)
        start = b.op.Reshape(b.weight("vision.embeddings.class_embedding"), [1, 1, config.hidden])
        start = b.op.Expand(start, b.op.Concat(pictures, [1, config.hidden], axis=0))
        x = b.op.Concat(start, patches, axis=1)
        x = b.op.Add(x, b.weight("vision.embeddings.position_embedding.weight"))
        return _norm(b, x, "vision.pre_layrnorm", config.eps)


def _layer(b: Builder, x: ir.Value, config: VisionConfig, index: int) -> ir.Value:
    name = f"vision.encoder.layers.{index}"
    with b.scope(f"layer.{index}"):
        y = _norm(b, x, f"{name}.layer_norm1", config.eps)
        query, key, value = (b.linear(y, f"{name}.self_attn.{part}_proj") for part in "qkv")
        heads = {"q_num_heads": config.heads, "kv_num_heads": config.heads}
        y = b.op.Attention(query, key, value, **heads)
        x = b.op.Add(x, b.linear(y, f"{name}.self_attn.out_proj"))
        y = _norm(b, x, f"{name}.layer_norm2", config.eps)
        y = activate(b, b.linear(y, f"{name}.mlp.fc1"), config.activation)
        return b.op.Add(x, b.linear(y, f"{name}.mlp.fc2"))
