"""The one error that is the user's to mend, told in one line."""


class InputError(ValueError):
    """Bad input: the message says what was wrong and what to do. The commands print it and stop."""
