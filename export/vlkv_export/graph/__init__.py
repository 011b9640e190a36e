"""Builds the decoder graph from a checkpoint's facts, with standard operators and those of vlkv."""
