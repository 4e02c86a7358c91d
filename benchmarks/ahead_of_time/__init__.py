"""Compilation for TPUs and GPUs that are not present, and the facts to be read off the result."""
