"""Adapters of evaluation harnesses: vlkv's engines as models of lmms-eval."""
