"""Read and write trained char-RNNs as files that other programs use."""
