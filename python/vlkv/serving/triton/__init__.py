"""vlkv behind Triton Inference Server: the model repository, the model, a server process."""
