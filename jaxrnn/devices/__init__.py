"""Devices, processes and files: all that depends on the machine."""
