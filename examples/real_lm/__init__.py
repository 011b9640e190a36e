"""A real language model as a checkpoint, and the effect of each weight format on its answers."""
