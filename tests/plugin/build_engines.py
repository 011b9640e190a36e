"""Build engines of one plugin node each with TensorRT for RTX, without a GPU: prints a line of JSON for each.

A process of its own: LD_LIBRARY_PATH has to be set before it starts, and a builder that fails may abort.
"""

import itertools
import json
import sys

import onnx_ir as ir
import tensorrt_rtx_bindings as trt
from plugin_nodes import plugin_nodes

from vlkv.export.ops.graphs import evict_model, score_model

DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
CACHE = ((1, 8, 1, 128), (1, 8, 4096, 128), (4, 8, 32768, 128))
PER_PROMPT = ((1,), (1,), (4,))
RANGES = {
    "query": ((1, 32, 0, 128), (1, 32, 64, 128), (4, 32, 1024, 128)),
    "row_position": ((1, 0), (1, 64), (4, 1024)),
    "key": CACHE,
    "value": CACHE,
    "score": tuple(shape[:3] for shape in CACHE),
    **dict.fromkeys(("length", "keep", "sinks", "recent"), PER_PROMPT),
}


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, text):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(text)


def build(builder, log, model) -> dict:
    log.errors.clear()
    nodes = plugin_nodes(model)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        return {"error": "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))}
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, [0], [410], [32768])
        else:
            profile.set_shape(tensor.name, *RANGES[tensor.name])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "nodes": nodes,
        "plugins": len(plugins),
        "outputs": {tensor.name: [len(tensor.shape), tensor.dtype.name] for tensor in outputs},
        "engine": 0 if engine is None else engine.nbytes,
        "named": engine is not None and any(name in bytes(engine) for name in (b"VlkvScore", b"VlkvEvict")),
        "error": "; ".join(log.errors),
    }


def main() -> None:
    log = Log()
    builder = trt.Builder(log)
    builder.get_plugin_registry().load_library(sys.argv[1])
    for name, dtype in DTYPES.items():
        model = ir.to_proto(score_model(0.125, 0.01, dtype))
        print(json.dumps({"case": f"score-{name}"} | build(builder, log, model)), flush=True)
        for per_head, merge in itertools.product((False, True), repeat=2):
            model = ir.to_proto(evict_model(per_head, merge, dtype, 8, 128))
            case = f"evict-{name}-{'per_head' if per_head else 'shared'}-{'merge' if merge else 'drop'}"
            print(json.dumps({"case": case} | build(builder, log, model)), flush=True)


if __name__ == "__main__":
    main()
