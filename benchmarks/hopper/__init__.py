"""Measurements of the Hopper kernels on one H100 or H200, beside their peers."""
