"""Turns text and pictures into token ids, embeddings and pixel values."""
