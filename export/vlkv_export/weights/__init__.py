"""Weights on their way into a directory: linked, converted to another dtype, or coded in a format of fewer bits."""
