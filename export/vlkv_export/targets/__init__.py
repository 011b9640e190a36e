"""What a graph directory is built for: which passes in which order, and how the engine's directory is written."""
