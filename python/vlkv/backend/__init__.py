"""What runs an engine's graphs. One module a backend; each offers `Backend`'s methods."""
