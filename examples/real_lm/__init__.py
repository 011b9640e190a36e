"""A real language model as a checkpoint, and what each weight format does to its answers."""
