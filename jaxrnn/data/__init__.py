"""Text: its sources, its vocabulary, batches of it, and prepared texts on disk."""
