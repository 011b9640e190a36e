"""From a Hugging Face checkpoint to graphs and engines. Files are all that the runtime sees of it."""
