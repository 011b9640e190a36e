"""Writes weights into a directory: linked, converted to another dtype, or quantised."""
