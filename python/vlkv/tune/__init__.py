"""Tunes one C or C++ function: proposers write candidates, a judge admits what is right and then faster."""
