"""Graph passes, one module each: `apply` changes a graph in place and returns a count (`docs/extending/pass.md`)."""
