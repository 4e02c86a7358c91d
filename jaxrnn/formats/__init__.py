"""Trained char-RNNs as files: for other programs, and from them."""
