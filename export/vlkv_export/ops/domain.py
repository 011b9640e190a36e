"""The domain of vlkv's operators."""

from onnxscript.values import Opset

DOMAIN = "vlkv"
VERSION = 1
OPSET = 24
VLKV = Opset(DOMAIN, VERSION)
