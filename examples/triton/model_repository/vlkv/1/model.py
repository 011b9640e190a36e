"""vlkv's model for Triton's Python backend; `pip install vlkv` in the server's Python."""

from vlkv.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
