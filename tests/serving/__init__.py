"""A package, so that no folder in it, such as `triton`, hides the library of that name."""
