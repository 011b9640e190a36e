"""Families, a file each: how a tower, a projector and a text model make one model."""
