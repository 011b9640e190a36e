"""A LLaVA checkpoint that reads forms with the language model SmolLM2-135M-Instruct. See README.md."""
