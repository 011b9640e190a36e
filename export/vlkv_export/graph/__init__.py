"""The three graphs of an engine directory, built from a checkpoint's facts with standard operators and `vlkv`'s own."""
