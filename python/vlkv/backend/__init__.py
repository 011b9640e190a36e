"""Backends run an engine's graphs. There is one module per backend; each implements the protocol `Backend`."""
