"""Vision towers, a file each: their configuration, tensors and graph."""
