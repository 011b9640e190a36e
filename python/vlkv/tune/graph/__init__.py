"""Tuning of the graph level: the optional lowering passes of an engine."""
