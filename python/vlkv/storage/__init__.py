"""Directories, files and manifests on disk."""
