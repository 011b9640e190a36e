"""vlkv behind Triton Inference Server: the model repository, the model, a server's process, a load test."""
