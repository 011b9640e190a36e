"""Vision towers, one file each: configuration, tensors and graph."""
