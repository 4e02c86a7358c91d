"""The commands: how they run, their options without JAX, and their work."""
