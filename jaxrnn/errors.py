"""The one error that is the user's to mend, told in one line."""


class InputError(Exception):
    """Bad input: the message says what was wrong and what to do. The commands print it and stop.

    Not a ValueError: those raised while a command line is parsed are the parser's to tell.
    """
