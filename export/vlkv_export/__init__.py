"""Turns a Hugging Face checkpoint into graphs and engines. The runtime sees only the files that it writes.

This package imports from `vlkv` its errors, constants of operators (`ops.constants`), the writers of directories and
manifests (`storage.files`, `storage.manifest`, `storage.image_facts`, `storage.directories`), and the progress display
of commands (`cli.console`). It imports neither torch nor transformers.
"""
