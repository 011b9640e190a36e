"""What a person asks, as token ids, embeddings and pixel values."""
