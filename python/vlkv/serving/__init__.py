"""Servers over one scheduler: an HTTP server with OpenAI's API, Triton Inference Server, Ray Serve; a load test."""
