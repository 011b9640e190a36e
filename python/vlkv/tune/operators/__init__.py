"""Tunes the native CPU operators for the machine at hand and the shapes of an engine."""
