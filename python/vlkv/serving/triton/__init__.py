"""Serving with Triton Inference Server: the model repository, the model, and the server process."""
