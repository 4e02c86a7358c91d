"""How training scales over several devices: predicted for TPU slices, and measured on this machine."""
