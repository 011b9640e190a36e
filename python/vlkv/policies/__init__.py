"""Which tokens stay: policies as data, and what carries them out."""
