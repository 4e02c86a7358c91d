"""Compile for TPUs and GPUs that are not present, and read operations, bytes and registers off the result."""
