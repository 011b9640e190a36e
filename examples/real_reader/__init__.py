"""A LLaVA checkpoint whose language model is SmolLM2-135M-Instruct and which reads forms: see README.md."""
