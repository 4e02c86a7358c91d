"""The units of a char-RNN: which of them follow a feature of the text; see README.md."""
