"""A tiny LLaVA checkpoint that reads dense forms: the forms, the training and the checks."""
