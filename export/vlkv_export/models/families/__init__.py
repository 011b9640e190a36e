"""Families, one file each: how a vision tower, a projector and a text model form one model."""
