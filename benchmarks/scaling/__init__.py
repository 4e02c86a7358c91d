"""Scaling of training over several devices: predicted for TPU slices, measured on this machine."""
