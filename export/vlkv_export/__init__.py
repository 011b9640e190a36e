"""From a Hugging Face checkpoint to graphs and engines. Files are all that the runtime sees of it.

Of `vlkv` this package imports its errors, the names of operators and their sizes (`ops.constants`), how directories and
their manifests are written (`storage.files`, `storage.manifest`, `storage.directories`), and the progress of a command
(`cli.console`). It imports neither torch nor transformers.
"""
