"""Text: where it comes from, its vocabulary, and batches of it."""
