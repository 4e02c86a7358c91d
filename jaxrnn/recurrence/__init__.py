"""Recurrent cells, and running them over time."""
