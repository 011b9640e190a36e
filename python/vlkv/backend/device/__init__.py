"""Engines whose caches are in a device's memory."""
