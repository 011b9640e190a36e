"""Lowering: small passes over a graph, one a file. Each states its condition and returns how often it rewrote."""
