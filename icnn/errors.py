"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """A user's mistake: what was expected, what came, which file, what to try.

    Its text is one line, whatever line breaks a path or a value in it holds.
    The commands print it on stderr and exit with 2; nothing else in the package
    is caught on the way there.
    """

    def __init__(self, text: str):
        super().__init__(" ".join(text.splitlines()))
