"""One sequence from its prompt to its last token."""
