"""Training a char-RNN: the step, the loop, and the run directory."""
