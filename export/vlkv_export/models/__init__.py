"""The supported models: families, vision towers and text models, and the reader of a whole checkpoint."""

from vlkv_export.models.reader import read_checkpoint, read_image_facts
from vlkv_export.models.registry import build_decoder, build_video, build_vision

__all__ = ["build_decoder", "build_video", "build_vision", "read_checkpoint", "read_image_facts"]
