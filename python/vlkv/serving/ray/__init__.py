"""Serving on several machines: replicas of an engine behind Ray Serve."""
