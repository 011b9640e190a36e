"""Pruning: which image tokens a prompt leaves out before prefill. One file per method, `methods.py` lists them."""
