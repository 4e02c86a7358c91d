"""A training run: its options, its text, the trainer, and `Run` for Python."""
