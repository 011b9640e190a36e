"""Adapters of evaluation harnesses: vlkv's engines answer the tasks of lmms-eval and VLMEvalKit."""
