"""Exception for user errors."""


class InputError(ValueError):
    """User error; the message says what was expected, what was found, in which file, and what to try.

    The message is one line: line breaks, for example in a path, become spaces.
    The commands print it on stderr and exit with code 2.
    """

    def __init__(self, text: str):
        super().__init__(" ".join(text.splitlines()))
