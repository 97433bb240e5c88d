"""The prompt and the help."""
