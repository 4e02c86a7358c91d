"""The scores of texts under a char-RNN, for `python -m jaxrnn.evaluate`."""
