"""The machine: accelerators, meshes of devices, processes, memory and files."""
