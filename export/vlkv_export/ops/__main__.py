"""Writes the reference graphs that `vlkv.ops` runs: `python -m vlkv_export.ops [FOLDER]`."""

import sys
from pathlib import Path

import onnx_ir as ir

from vlkv.ops.constants import THRESHOLD
from vlkv_export.ops import compress_model, score_model


def bodies() -> dict[str, bytes]:
    """Make the files' names and contents; the bytes are always the same. The runtime sets Score's attributes."""
    models = {"score.onnx": score_model(scale=1.0, threshold=THRESHOLD), "compress.onnx": compress_model()}
    return {name: ir.to_proto(model).SerializeToString(deterministic=True) for name, model in models.items()}


def main() -> None:
    """Write the files into the given folder, or into the package `vlkv` of this source tree."""
    default = Path(__file__).resolve().parents[3] / "python" / "vlkv" / "ops" / "bodies"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in bodies().items():
        (folder / name).write_bytes(content)
        print(f"{folder / name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
