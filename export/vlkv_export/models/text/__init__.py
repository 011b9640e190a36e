"""Text models, a file each: their configuration, tensors and graph."""
