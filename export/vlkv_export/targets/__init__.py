"""Build targets: the order of the passes, and the contents of the engine directory."""
