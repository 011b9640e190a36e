"""Text models, one file each: configuration, tensors and graph."""
